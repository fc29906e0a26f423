#!/usr/bin/env bash
# Fails when a relative link or picture of a Markdown file of the tree leads nowhere.
set -euo pipefail
cd "$1"

links=0
broken=0
while IFS= read -r file; do
  while IFS= read -r target; do
    links=$((links + 1))
    if [[ ! -e $(dirname "$file")/$target ]]; then
      echo "$file: no such file: $target"
      broken=1
    fi
  done < <(grep -oE '\]\([^)#: ]+[)#]' "$file" | sed -E 's/^\]\(//; s/[)#]$//')
done < <(find . -name '*.md' -not -path './build*' -not -path './.git/*')
echo "$links links"
[[ $links -gt 0 && $broken -eq 0 ]]
