#!/usr/bin/env bash
# Builds the fuzz targets and runs each for some seconds, from the corpus that is checked in.
# usage: scripts/fuzz.sh [SECONDS] [TARGET ...]
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=${1:-60}
shift || true
targets=("$@")
if [[ ${#targets[@]} -eq 0 ]]; then
  for source in fuzz/fuzz_*.cc; do targets+=("$(basename "$source" .cc)"); done
fi
scripts/build.sh fuzz "${targets[@]}"

# What a run finds stays in the build directory; a crash is worth a test, its bytes a corpus file.
for target in "${targets[@]}"; do
  found=build-fuzz/corpus/$target
  mkdir -p "$found"
  echo "fuzz: $target for $seconds s"
  log=build-fuzz/$target.log
  if ! "build-fuzz/fuzz/$target" "$found" "fuzz/corpus/$target" -max_total_time="$seconds" \
    -rss_limit_mb=4096 -timeout=20 -artifact_prefix="build-fuzz/$target-" -print_final_stats=1 \
    >"$log" 2>&1; then
    tail -n 40 "$log"
    echo "fuzz: $target failed; the input is named above, the log is $log"
    exit 1
  fi
  grep -E "number_of_executed_units" "$log"
done
