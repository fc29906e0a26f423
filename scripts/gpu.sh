#!/usr/bin/env bash
# Everything that only a machine with a GPU can tell: tests of the CUDA backend and of the lab, and the
# verify suites.
# usage: scripts/gpu.sh pack [BUILD]            puts the programs and their libraries into build-gpu/, which
#                                               runs on a machine without the tools that built it
#        scripts/gpu.sh run [PACK [NAME ...]]   runs all, or those named as in the table that it ends with,
#                                               such as cuda_attend_test; fails when anything failed
set -euo pipefail
cd "$(dirname "$0")/.."

pack() {
  local build=$1 to=build-gpu program programs
  programs=("$build/pando" "$build/lab/lab_time" "$build/bench/cuda_call_bench" "$build"/tests/cuda/*_test
            "$build/tests/lab/lab_test")
  rm -rf "$to"
  mkdir -p "$to/lib"
  for program in "${programs[@]}"; do
    cp "$program" "$to/"
    ldd "$program" | awk '$2 == "=>" && $3 ~ /lib(hwy|fmt|gtest|stdc\+\+|gcc_s)/ {print $3}' |
      xargs -r -I{} cp -L -n {} "$to/lib/"
  done
  strip "$to"/pando "$to"/lab_time "$to"/cuda_call_bench "$to"/*_test
  du -sh "$to"
}

run() {
  local from=$1 logs=$1/logs failed=0 name start verdict table=()
  shift
  local wanted=" $* "
  mkdir -p "$logs"
  export LD_LIBRARY_PATH=$PWD/$from/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
  # one NAME COMMAND...: its output goes to a log, its verdict and last line into the table.
  one() {
    name=$1 start=$SECONDS verdict=ok
    shift
    [[ $wanted == "  " || $wanted == *" $name "* || $name == info ]] || return 0
    echo "== $name: $*"
    "$@" >"$logs/$name.log" 2>&1 || { verdict=FAILED; failed=1; tail -n 60 "$logs/$name.log"; }
    table+=("$(printf '%-18s %-7s %4d s  %s' "$name" "$verdict" $((SECONDS - start)) \
      "$(grep -E 'PASSED|FAILED  \]|SKIPPED|cases passed|predictions are|^pando:' "$logs/$name.log" | tail -n 1)")")
  }
  one info "$from/pando" info --backend cuda
  cat "$logs/info.log"
  for name in "$from"/*_test; do one "$(basename "$name")" "$name" --gtest_brief=1; done
  one verify_seed "$from/pando" verify --backend cuda --suite seed
  one verify_edges "$from/pando" verify --backend cuda --suite edges --quick
  one verify_shapes "$from/pando" verify --backend cuda --suite shapes
  one verify_random "$from/pando" verify --backend cuda --suite random --seed 1001
  one verify_fp8 "$from/pando" verify --backend cuda --suite random --seed 2001 --kv-dtype fp8
  one calibrate "$from/pando" calibrate --backend cuda --check --out "$logs/profile.json"
  one lab_time "$from/lab_time"
  one cuda_call_bench "$from/cuda_call_bench"
  one demo "$from/pando" demo --backend cuda
  printf '\n== on %s\n' "$(sed -n 's/^ *device *//p' "$logs/info.log")"
  printf '%s\n' "${table[@]}"
  return "$failed"
}

case ${1:-} in
  pack) pack "${2:-build}" ;;
  run) run "${2:-build-gpu}" "${@:3}" ;;
  *)
    sed -n '2,7p' "$0" >&2
    exit 2
    ;;
esac
