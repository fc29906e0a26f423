#!/usr/bin/env bash
# Builds with the CUDA backend for sm_90a (no GPU needed), refuses kernels that spill registers or lack
# the instructions that they are written for, and runs the tests of the schedule on the host.
# usage: scripts/cuda.sh [--kernels]    --kernels: builds and checks the kernels only, where the release
#                                       preset has built and tested all else with the same nvcc
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
toolkit=$(dirname "$(command -v "${CUDACXX:-nvcc}")")
# A package of its own in some distributions of the toolkit.
cuobjdump=$(PATH=$toolkit:$PATH command -v cuobjdump || true)
if [[ -z $cuobjdump ]]; then
  tools=$PWD/build-cuda/tools
  export PATH=$tools/nvidia/cu13/bin:$PATH  # cuobjdump looks for nvdisasm there
  command -v cuobjdump >/dev/null ||
    python3 -m pip install --quiet --target "$tools" nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm || true
  cuobjdump=$(command -v cuobjdump || true)
fi

# ptxas reports once, when a file is compiled: the report of an earlier build would be missing.
find build-cuda -name '*.cu.o' -delete 2>/dev/null || true
log=$(mktemp)
sass=$(mktemp)
trap 'rm -f "$log" "$sass"' EXIT
targets=(pando_kernels pando_lab_kernels)
[[ ${1:-} == --kernels ]] || targets+=(pando pando_lab schedule_test plan_test allocation_test cuda_api_test)
scripts/build.sh cuda "${targets[@]}" 2>&1 | tee "$log"
if ! grep -q 'bytes spill stores' "$log"; then
  echo "cuda: there is no ptxas report in the output of the build"
  exit 1
fi
if grep -E '[1-9][0-9]* bytes (stack frame|spill stores|spill loads)' "$log"; then
  echo "cuda: a kernel spills registers or has a stack frame"
  exit 1
fi

if grep -E 'Potential Performance Loss' "$log"; then
  echo "cuda: ptxas serialises a kernel's wgmma"
  exit 1
fi

# nvcc 12 does not compress them.
size=$(find build-cuda -path '*pando_kernels.dir*' -name '*.cu.o' -printf '%s\n' | awk '{ sum += $1 } END { print sum }')
echo "cuda: $((size / 1000)) KB of kernels"
if grep -q -e '-compress-mode=size' build-cuda/build.ninja && ((size > 5000000)); then
  echo "cuda: the kernels have more than 5 MB: the library should have 10 at most"
  exit 1
fi

# must_have TARGET SOURCE INSTRUCTION...: the source's kernels have them.
must_have() {
  local source=$2 object instruction count
  object=$(find build-cuda -path "*$1.dir*" -name "$source.o")
  shift 2
  "$cuobjdump" -sass "$object" >"$sass"
  for instruction in "$@"; do
    count=$(grep -c "$instruction" "$sass" || true)
    echo "cuda: $source: $count $instruction"
    if [[ $count -eq 0 ]]; then
      echo "cuda: $source has no $instruction: it is not what its source says"
      exit 1
    fi
  done
}
if [[ -z $cuobjdump ]]; then
  echo "cuda: no cuobjdump on PATH: instructions not checked"
else
  must_have pando_kernels by_token.cu HGMMA LDGSTS
  must_have pando_kernels launch.cu HGMMA UTMALDG F2FP.F16.E4M3
  # The softmax of a tile is to hide under the output of the last: all its exponentials come before the
  # wait for that output, in both loops of each kernel. Waits for scores that follow each other are
  # those of one loop's branches.
  awk '/DEPBAR.LE gsb0, 0x1/ { if (!waits) loops++; waits = 1; exponentials = 0 }
       /MUFU.EX2/ { exponentials++; waits = 0 }
       /DEPBAR.LE gsb0, 0x0/ { if (exponentials >= 32) hidden++; exponentials = -1e9 }
       END {
         printf "cuda: softmax hidden under the output in %d of %d loops\n", hidden, loops
         exit loops == 0 || hidden != loops
       }' "$sass"
  must_have pando_lab_kernels 03_tensor_cores.cu HGMMA
  must_have pando_lab_kernels 04_tma_ring.cu HGMMA UTMALDG
fi

[[ ${1:-} != --kernels ]] || exit 0
for test in plan/schedule_test plan/plan_test plan/allocation_test cuda/cuda_api_test; do
  RC_PARAMS=max_success=2000 "build-cuda/tests/$test" --gtest_brief=1
done
