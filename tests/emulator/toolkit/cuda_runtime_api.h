// Stands in for the toolkit's header.
#pragma once

#include <cstdint>

using cudaStream_t = void*;
struct dim3 {
  uint32_t x = 1, y = 1, z = 1;
};
