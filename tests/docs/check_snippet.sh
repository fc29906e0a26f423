#!/usr/bin/env bash
# Fails unless the first C++ block of the README is the marked part of the example, unindented.
set -euo pipefail
cd "$1"

diff <(awk '/^```cpp$/ {inside = 1; next} /^```$/ {if (inside) exit} inside' README.md) \
     <(awk '/\/\/ \[readme\]$/ {inside = !inside; next} inside' examples/shared_prefix.cc |
       sed 's/^  //') && echo "the same"
