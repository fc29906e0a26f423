#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>

#include "core/convert.h"

namespace pando::ptx {

inline float lg2(float x) { return std::log2(x); }
inline float rcp(float x) { return 1 / x; }
inline float ex2(float x) { return std::exp2(x); }
inline uint32_t cvt_pack(float low, float high, __nv_bfloat16) {
  return float_to_bf16(low) | uint32_t{float_to_bf16(high)} << 16;
}
inline uint32_t cvt_pack(float low, float high, __half) {
  return float_to_f16(low) | uint32_t{float_to_f16(high)} << 16;
}

inline uint32_t cvt_f16x2_e4m3x2(uint16_t two) {
  const auto half = [](uint8_t code) { return float_to_f16(e4m3_to_float(code)); };
  return half(static_cast<uint8_t>(two)) | uint32_t{half(static_cast<uint8_t>(two >> 8))} << 16;
}
inline float cvt_f32_f16(uint16_t half) { return f16_to_float(half); }

}  // namespace pando::ptx
