#include "emulator/merge.h"

#include "cuda/kernels/merge/kernel.cuh"

namespace pando::emulator {

void merge(const cuda::MergeParams& params, DType dtype) {
  Grid grid(static_cast<int>(cuda::merge_blocks(params)), cuda::kMergeThreads, 0, 0);
  grid.run([&] {
    dtype == DType::kBF16 ? cuda::merge_kernel<__nv_bfloat16>(params)
                          : cuda::merge_kernel<__half>(params);
  });
}

}  // namespace pando::emulator
