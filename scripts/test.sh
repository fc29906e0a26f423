#!/usr/bin/env bash
# Builds a preset, runs its tests and says which were skipped and why.
# usage: scripts/test.sh [PRESET] [CTEST ARGUMENT ...]
set -euo pipefail
cd "$(dirname "$0")/.."

preset=${1:-release}
shift || true
scripts/build.sh "$preset"

status=0
ctest --preset "$preset" --parallel "${PANDO_JOBS:-$(nproc)}" --progress "$@" || status=$?

build=build
[[ $preset == release ]] || build=build-$preset
# A skipped GoogleTest case prints "FILE:LINE: Skipped", its reason, and "[  SKIPPED ] NAME (0 ms)".
awk '
  /: Skipped$/ { getline reason; next }
  /^\[  SKIPPED \] .*ms\)$/ {
    name = $4
    if (!(name in seen)) { seen[name] = 1; line[++count] = "  " name ": " reason }
  }
  END {
    if (count == 0) { print "skipped: none"; exit }
    printf "skipped: %d\n", count
    for (i = 1; i <= count; ++i) print line[i]
  }' "$build/Testing/Temporary/LastTest.log"
exit "$status"
