// A tensor map that the emulator can read.
#pragma once

#include <cuda.h>

#include <algorithm>
#include <cstdint>
#include <span>

#include "pando/attention.h"

namespace pando::cuda {

inline CUtensorMap tensor_map(const void* data, DType, std::span<const int64_t> sizes,
                              std::span<const int64_t> stride_bytes, std::span<const int32_t> box) {
  CUtensorMap map{
      .data = data, .sizes = {1, 1, 1, 1, 1}, .stride_bytes = {}, .box = {1, 1, 1, 1, 1}};
  std::ranges::copy(sizes, map.sizes);
  std::ranges::copy(stride_bytes, map.stride_bytes);
  std::ranges::copy(box, map.box);
  return map;
}

}  // namespace pando::cuda
