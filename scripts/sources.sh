#!/usr/bin/env bash
# Lists the C++ files of the project that git does not ignore, one a line.
# usage: scripts/sources.sh [--units] [FOLDER ...]    --units: files that are compiled, not headers
set -euo pipefail
cd "$(dirname "$0")/.."

pattern='\.(cc|h|cu|cuh)$'
if [[ ${1:-} == --units ]]; then
  pattern='\.cc$'
  shift
fi
git ls-files --cached --others --exclude-standard -- "${@:-.}" | sort -u | grep -E "$pattern" |
  while read -r file; do [[ ! -f $file ]] || echo "$file"; done
