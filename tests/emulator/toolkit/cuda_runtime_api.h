// Stands in for the toolkit's header.
#pragma once

#include <cstdint>

using cudaStream_t = void*;
struct dim3 {
  uint32_t x, y, z;
  dim3(uint32_t x = 1, uint32_t y = 1, uint32_t z = 1) : x(x), y(y), z(z) {}
};
