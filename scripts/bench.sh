#!/usr/bin/env bash
# Builds and runs every Google Benchmark program, then `pando bench` on shapes scaled to this machine.
# usage: scripts/bench.sh [ARGUMENT OF PANDO BENCH ...]
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/build.sh release
for program in build/bench/*_bench; do
  printf '\n== %s\n' "$(basename "$program")"
  "$program"
done
printf '\n== pando bench\n'
build/pando bench "$@"
