// Stands in for the toolkit's header. The attend kernel uses the type as a tag only.
#pragma once

#include <cstdint>

#include "core/convert.h"

// NOLINTBEGIN: the names are CUDA's.
struct __nv_bfloat16 {
  uint16_t bits;
};
inline float __bfloat162float(__nv_bfloat16 x) { return pando::bf16_to_float(x.bits); }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return {pando::float_to_bf16(x)}; }
// NOLINTEND
