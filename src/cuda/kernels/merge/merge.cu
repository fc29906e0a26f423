#include <initializer_list>
#include <limits>
#include <string>

#include "cuda/kernels/merge/kernel.cuh"
#include "cuda/kernels/merge/launch.h"
#include "pando/error.h"

namespace pando::cuda {
namespace {

[[noreturn]] void unsupported(const std::string& message) {
  throw Error(ErrorCode::kUnsupported, message);
}

void check(const MergeParams& p, DType dtype) {
  if (dtype == DType::kF32) unsupported("dtype: got fp32 on CUDA, want one of bf16, fp16");
  if (p.head_dim % kMergeColumns != 0) {
    unsupported("head_dim: got " + std::to_string(p.head_dim) + ", want a multiple of 8");
  }
  for (const int64_t stride :
       {p.part_stride, p.row_stride, p.head_stride, p.out_row_stride, p.out_head_stride}) {
    if (stride % kMergeColumns != 0) {
      unsupported("parts: got a stride of " + std::to_string(stride) +
                  " elements, want multiples of 8");
    }
  }
  for (const void* address : {p.parts, static_cast<const void*>(p.out)}) {
    if (reinterpret_cast<uintptr_t>(address) % 16 != 0) {
      unsupported("parts: got memory that is not aligned to 16 bytes");
    }
  }
}

}  // namespace

void launch_merge(const MergeParams& params, DType dtype, cudaStream_t stream) {
  check(params, dtype);
  const int64_t blocks = merge_blocks(params);
  if (blocks == 0) return;
  if (blocks > std::numeric_limits<int32_t>::max()) {
    unsupported("q_rows: got " + std::to_string(params.rows) + ", want fewer");
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kMergeThreads);
  config.stream = stream;
  const cudaError_t status = dtype == DType::kBF16
                                 ? cudaLaunchKernelEx(&config, merge_kernel<__nv_bfloat16>, params)
                                 : cudaLaunchKernelEx(&config, merge_kernel<__half>, params);
  if (status != cudaSuccess) {
    throw Error(ErrorCode::kDevice, std::string("merge: launch: ") + cudaGetErrorName(status) +
                                        ", " + cudaGetErrorString(status));
  }
}

}  // namespace pando::cuda
