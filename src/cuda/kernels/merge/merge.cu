#include <initializer_list>
#include <limits>
#include <string>

#include "cuda/device.h"
#include "cuda/kernels/merge/kernel.cuh"
#include "cuda/kernels/merge/launch.h"
#include "pando/error.h"

namespace pando::cuda {
namespace {

[[noreturn]] void unsupported(const std::string& message) {
  throw Error(ErrorCode::kUnsupported, message);
}

void check_tensor(const std::string& name, const void* address,
                  std::initializer_list<int64_t> strides) {
  for (const int64_t stride : strides) {
    if (stride % kMergeColumns == 0) continue;
    unsupported(name + ": got a stride of " + std::to_string(stride) +
                " elements, want a multiple of 8");
  }
  const auto past = reinterpret_cast<uintptr_t>(address) % 16;
  if (past != 0) {
    unsupported(name + ": got memory that starts " + std::to_string(past) +
                " bytes past a multiple of 16, want it aligned to 16 bytes");
  }
}

void check_params(const MergeParams& p, DType dtype) {
  if (dtype == DType::kF32) unsupported("dtype: got fp32 on CUDA, want one of bf16, fp16");
  if (p.head_dim % kMergeColumns != 0) {
    unsupported("head_dim: got " + std::to_string(p.head_dim) + ", want a multiple of 8");
  }
  check_tensor("parts", p.parts, {p.part_stride, p.row_stride, p.head_stride});
  check_tensor("out", p.out, {p.out_row_stride, p.out_head_stride});
}

}  // namespace

void launch_merge(const MergeParams& params, DType dtype, cudaStream_t stream) {
  check_params(params, dtype);
  const int64_t blocks = merge_blocks(params);
  if (blocks == 0) return;
  if (blocks > std::numeric_limits<int32_t>::max()) {
    unsupported("q_rows: got " + std::to_string(params.rows) + ", want fewer");
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(kMergeThreads);
  config.stream = stream;
  check(dtype == DType::kBF16 ? cudaLaunchKernelEx(&config, merge_kernel<__nv_bfloat16>, params)
                              : cudaLaunchKernelEx(&config, merge_kernel<__half>, params),
        "merge: launch");
}

}  // namespace pando::cuda
