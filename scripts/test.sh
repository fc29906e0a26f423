#!/usr/bin/env bash
# Builds a preset, runs its tests and says which were skipped and why.
# usage: scripts/test.sh [PRESET] [--only LABEL] [CTEST ARGUMENT ...]
#        --only LABEL: builds and runs the tests with that label and nothing else
set -euo pipefail
cd "$(dirname "$0")/.."

preset=${1:-release}
shift || true
label=()
targets=()
if [[ ${1:-} == --only ]]; then
  label=(-L "^$2\$")
  targets=("tests_$2")
  shift 2
fi
# Sanitizers can't be loaded into a Python that was built without them.
if [[ $preset == release && ${PANDO_PYTHON:-on} == on ]]; then
  scripts/python.sh venv
  export PANDO_PYTHON=on
fi
scripts/build.sh "$preset" "${targets[@]}"

status=0
ctest --preset "$preset" --parallel "${PANDO_JOBS:-$(nproc)}" --progress "${label[@]}" "$@" || status=$?

build=build
[[ $preset == release ]] || build=build-$preset
# A skipped GoogleTest case prints "FILE:LINE: Skipped", its reason, and "[  SKIPPED ] NAME (0 ms)".
awk '
  /: Skipped$/ { getline reason; next }
  /^SKIPPED \[[0-9]+\] / {  # pytest: "SKIPPED [1] FILE:LINE: REASON"
    sub(/^SKIPPED \[[0-9]+\] /, "")
    if (!($0 in seen)) { seen[$0] = 1; line[++count] = "  " $0 }
    next
  }
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
