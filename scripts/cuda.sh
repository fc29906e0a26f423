#!/usr/bin/env bash
# Compiles the CUDA code for sm_90a (no GPU needed) and refuses kernels that spill registers.
# Exits with 77, "skipped", where there is no nvcc.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ -z ${CUDACXX:-} ]] && ! command -v nvcc >/dev/null; then
  if [[ ! -x /usr/local/cuda/bin/nvcc ]]; then
    echo "skipped: there is no nvcc on this machine"
    exit 77
  fi
  export CUDACXX=/usr/local/cuda/bin/nvcc
fi

# ptxas reports once, when a file is compiled: the report of an earlier build would be missing.
rm -rf build-cuda/src/cuda
log=$(mktemp)
trap 'rm -f "$log"' EXIT
scripts/build.sh cuda pando_hopper hopper_bench 2>&1 | tee "$log"
if ! grep -q 'bytes spill stores' "$log"; then
  echo "cuda: there is no ptxas report in the output of the build"
  exit 1
fi
if grep -E '[1-9][0-9]* bytes (stack frame|spill stores|spill loads)' "$log"; then
  echo "cuda: a kernel spills registers or has a stack frame"
  exit 1
fi
