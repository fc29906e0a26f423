#include "cuda/tensor_map.h"

#include <cudaTypedefs.h>
#include <cuda_runtime_api.h>

#include <algorithm>

#include "core/check.h"
#include "cuda/device.h"
#include "plan/tile_format.h"

namespace pando::cuda {
namespace {

/// The library does not link the driver, which machines without a GPU lack.
PFN_cuTensorMapEncodeTiled_v12000 find_encoder() {
  void* entry = nullptr;
  cudaDriverEntryPointQueryResult found{};
  check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &entry, 12000, cudaEnableDefault,
                                         &found),
        "cuTensorMapEncodeTiled");
  if (found != cudaDriverEntryPointSuccess) {
    fail(ErrorCode::kDevice, "cuTensorMapEncodeTiled: the driver does not have it");
  }
  return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(entry);
}

}  // namespace

CUtensorMap tensor_map(const void* data, DType dtype, std::span<const int64_t> sizes,
                       std::span<const int64_t> stride_bytes, std::span<const int32_t> box) {
  static const PFN_cuTensorMapEncodeTiled_v12000 encode = find_encoder();
  constexpr size_t kMostDimensions = 5;
  cuuint64_t map_sizes[kMostDimensions], map_strides[kMostDimensions];
  cuuint32_t map_box[kMostDimensions];
  std::ranges::copy(sizes, map_sizes);
  std::ranges::copy(stride_bytes, map_strides);
  std::ranges::copy(box, map_box);
  const cuuint32_t steps[kMostDimensions] = {1, 1, 1, 1, 1};
  // Promoted to two lines, long runs took 4 to 8 % longer
  // (docs/benchmarks/h200-kernel-boxes-2026-11-30.txt).
  CUtensorMap map;
  const bool fp8 = dtype == DType::kE4M3;
  const int64_t row_bytes = box[0] * dtype_bytes(dtype);
  const CUtensorMapDataType type = fp8                     ? CU_TENSOR_MAP_DATA_TYPE_UINT8
                                   : dtype == DType::kBF16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                           : CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
  const CUresult result =
      encode(&map, type, static_cast<cuuint32_t>(sizes.size()), const_cast<void*>(data), map_sizes,
             map_strides, map_box, steps, CU_TENSOR_MAP_INTERLEAVE_NONE,
             is_swizzled(row_bytes) ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_NONE,
             CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    fail(ErrorCode::kUnsupported,
         "kv: the driver makes no tensor map for these strides, CUresult {}",
         static_cast<int>(result));
  }
  return map;
}

}  // namespace pando::cuda
