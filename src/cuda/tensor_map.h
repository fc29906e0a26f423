// What TMA knows a tensor by.
#pragma once

#include <cuda.h>

#include <cstdint>
#include <span>

#include "pando/attention.h"

namespace pando::cuda {

/// A tensor map of elements of two bytes or of fp8, for boxes that lie in shared memory as
/// is_swizzled says; what a box has outside of the tensor becomes 0. Dimensions from the innermost,
/// contiguous one on; `stride_bytes` is of all the others. Throws kUnsupported for what the driver
/// refuses, kDevice where it has no such function.
CUtensorMap tensor_map(const void* data, DType dtype, std::span<const int64_t> sizes,
                       std::span<const int64_t> stride_bytes, std::span<const int32_t> box);

}  // namespace pando::cuda
