// Stands in for the driver's header: a tensor map that the emulator can read.
#pragma once

#include <cstdint>

struct CUtensorMap {
  const void* data;
  int64_t sizes[5];
  int64_t stride_bytes[4];  ///< of all dimensions but the first
  int32_t box[5];
  int32_t element_bytes = 2;
  bool swizzled = true;  ///< in the 128-byte swizzle
};
