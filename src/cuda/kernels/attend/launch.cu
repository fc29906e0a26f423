#include <cudaTypedefs.h>
#include <cuda_bf16.h>

#include <algorithm>
#include <string>

#include "cuda/kernels/attend/kernel.cuh"
#include "cuda/kernels/attend/launch.h"
#include "pando/error.h"

namespace pando::cuda {
namespace {

using Bf16 = Config<__nv_bfloat16, 128>;

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw Error(ErrorCode::kDevice, std::string(what) + ": " + cudaGetErrorString(status));
}

PFN_cuTensorMapEncodeTiled_v12000 encoder() {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found{};
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault,
                                         &found),
        "cuTensorMapEncodeTiled");
  if (found != cudaDriverEntryPointSuccess) {
    throw Error(ErrorCode::kDevice, "cuTensorMapEncodeTiled: the driver does not have it");
  }
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(entry);
}

/// [64 elements, tokens of a page, halves of head_dim, heads, pages], in boxes of `box` tokens.
CUtensorMap tensor_map(const void* data, const KvLayout& kv, int32_t box) {
  constexpr cuuint64_t kElement = 2;
  CUtensorMap map;
  const cuuint64_t sizes[5] = {64, cuuint64_t(kv.page_tokens), cuuint64_t(kv.head_dim / 64),
                               cuuint64_t(kv.kv_heads), cuuint64_t(kv.num_pages)};
  const cuuint64_t strides[4] = {kElement * kv.token_stride, kElement * 64,
                                 kElement * kv.head_stride, kElement * kv.page_stride};
  const cuuint32_t box_sizes[5] = {64, cuuint32_t(box), 1, 1, 1};
  const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
  const CUresult result =
      encoder()(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 5, const_cast<void*>(data), sizes, strides,
                box_sizes, steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw Error(ErrorCode::kUnsupported,
                "kv: no tensor map for these strides (want multiples of 8 elements), CUresult " +
                    std::to_string(result));
  }
  return map;
}

}  // namespace

int32_t box_tokens(int32_t page_tokens) { return std::min(page_tokens, 64); }

void launch_attend(const AttendParams& params, const void* k, const void* v, const KvLayout& kv,
                   int32_t thread_blocks, cudaStream_t stream) {
  if (kv.head_dim != Bf16::kHeadDim) {
    throw Error(ErrorCode::kUnsupported,
                "head_dim: got " + std::to_string(kv.head_dim) + ", this kernel is for 128");
  }
  const int32_t big = box_tokens(kv.page_tokens);
  const int32_t small = std::min(big, 8);
  const TensorMaps maps{tensor_map(k, kv, big), tensor_map(v, kv, big), tensor_map(k, kv, small),
                        tensor_map(v, kv, small)};
  constexpr int kSharedBytes = sizeof(SharedPlan<Bf16>);
  check(cudaFuncSetAttribute(attend_kernel<Bf16>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             kSharedBytes),
        "attend: shared memory");
  attend_kernel<Bf16><<<thread_blocks, Bf16::kThreads, kSharedBytes, stream>>>(params, maps);
  check(cudaGetLastError(), "attend: launch");
}

}  // namespace pando::cuda
