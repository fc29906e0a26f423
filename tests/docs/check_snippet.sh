#!/usr/bin/env bash
# Fails unless the first C++ block of a text is the marked part of an example, unindented.
set -euo pipefail
cd "$1"

# same TEXT EXAMPLE MARK
same() {
  diff <(awk '/^```cpp$/ {inside = 1; next} /^```$/ {if (inside) exit} inside' "$1") \
       <(awk -v mark="// [$3]" 'substr($0, length($0) - length(mark) + 1) == mark {inside = !inside; next} inside' "$2" |
         sed 's/^  //') && echo "$1: the same"
}
same README.md examples/shared_prefix.cc readme
same docs/integration.md examples/decode_loop.cc integration
