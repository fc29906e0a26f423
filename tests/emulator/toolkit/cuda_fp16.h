// Stands in for the toolkit's header. The attend kernel uses the type as a tag only.
#pragma once

#include <cstdint>

#include "core/convert.h"

// NOLINTBEGIN: the names are CUDA's.
struct __half {
  uint16_t bits;
};
inline float __half2float(__half x) { return pando::f16_to_float(x.bits); }
inline __half __float2half_rn(float x) { return {pando::float_to_f16(x)}; }
// NOLINTEND
