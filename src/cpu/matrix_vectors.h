// AVX-512 helpers of the matrix kernels.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>

#include "core/convert.h"
#include "cpu/unit.h"

/// What the matrix kernels share needs AVX-512 with bf16 and nothing more.
#define PANDO_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")))
#define PANDO_AVX512_INLINE PANDO_AVX512 __attribute__((always_inline)) inline

namespace pando {

/// 32 bf16 from `from`, or the first `count` and zeros.
PANDO_AVX512_INLINE __m512i load_bf16(const std::byte* from, int32_t count) {
  if (count >= 32) return _mm512_loadu_si512(from);
  return _mm512_maskz_loadu_epi16((__mmask32{1} << count) - 1, from);
}

/// bf16 of the codes of fp8 without a sign.
struct Fp8Table {
  alignas(64) uint16_t bits[128];

  constexpr Fp8Table() : bits{} {
    for (int code = 0; code < 128; ++code) bits[code] = of(code);
  }

 private:
  static constexpr uint16_t of(int code) {
    const int mantissa = code & 7;
    if (code == 0x7f) return 0x7fc0;  // NaN
    if (code >= 8) return static_cast<uint16_t>((code << 4) + (120 << 7));
    if (mantissa == 0) return 0;
    const int top = mantissa >= 4 ? 2 : mantissa >= 2 ? 1 : 0;  // its leading one
    return static_cast<uint16_t>((118 + top) << 7 | (mantissa << (7 - top) & 0x7f));
  }
};
inline constexpr Fp8Table kFp8Table;

/// 32 fp8 as bf16, exactly.
PANDO_AVX512_INLINE __m512i bf16_of_fp8(__m256i codes) {
  const __m512i wide = _mm512_cvtepu8_epi16(codes);
  const uint16_t* const table = kFp8Table.bits;
  // Six bits of an index choose among 64 entries.
  const __m512i low =
      _mm512_permutex2var_epi16(_mm512_load_si512(table), wide, _mm512_load_si512(table + 32));
  const __m512i high =
      _mm512_permutex2var_epi16(_mm512_load_si512(table + 64), wide, _mm512_load_si512(table + 96));
  const __mmask32 is_high = _mm512_test_epi16_mask(wide, _mm512_set1_epi16(0x40));
  const __m512i sign = _mm512_slli_epi16(_mm512_and_si512(wide, _mm512_set1_epi16(0x80)), 8);
  return _mm512_or_si512(_mm512_mask_mov_epi16(low, is_high, high), sign);
}

/// 32 bf16 of fp8 at `from`, or the first `count` and zeros.
PANDO_AVX512_INLINE __m512i load_fp8(const std::byte* from, int32_t count) {
  const auto* const codes = reinterpret_cast<const __m256i*>(from);
  if (count >= 32) return bf16_of_fp8(_mm256_loadu_si256(codes));
  return bf16_of_fp8(_mm256_maskz_loadu_epi8((__mmask32{1} << count) - 1, codes));
}

/// Elements that are neither NaN nor infinite.
PANDO_AVX512_INLINE __mmask32 finite_bf16(__m512i values) {
  const __m512i exponent = _mm512_set1_epi16(0x7f80);
  return _mm512_cmpneq_epi16_mask(_mm512_and_si512(values, exponent), exponent);
}

/// Elements times `factor`: 1, -1, or 0, which makes NaN of what is not finite.
PANDO_AVX512_INLINE __m512i times_sign(__m512i values, float factor) {
  if (factor == 0) {
    return _mm512_mask_blend_epi16(finite_bf16(values), _mm512_set1_epi16(0x7fc0),
                                   _mm512_setzero_si512());
  }
  const __m512i sign = _mm512_set1_epi16(factor < 0 ? static_cast<int16_t>(0x8000) : int16_t{0});
  return _mm512_xor_si512(values, sign);
}

/// 2^x for x <= 0 (and a little above): relative error below 2e-7, exactly 1 at 0, 0 for -inf and,
/// with subnormals flushed, below -126. A NaN stays one.
PANDO_AVX512_INLINE __m512 exp2_16(__m512 x) {
  constexpr int kFraction = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
  const __m512 f = _mm512_reduce_ps(x, kFraction);  // x - floor(x), and 0 for -inf
  // Minimax on [0, 1] with the constant term fixed to 1.
  __m512 p = _mm512_set1_ps(0x1.e974fap-10f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.277856p-7f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.c91ce6p-5f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.ebdb56p-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0x1.62e4bap-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, x);  // p * 2^floor(x)
}

/// tanh(x): relative error below 4e-7, +-1 at the ends, 0 at 0. A NaN stays one.
PANDO_AVX512_INLINE __m512 tanh_16(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  const __m512 sign = _mm512_set1_ps(-0.0f);
  const __m512 magnitude = _mm512_andnot_ps(sign, x);
  // Far from 0, (1 - e) / (1 + e) with e = exp(-2 |x|); near it that would cancel.
  const __m512 e = exp2_16(_mm512_mul_ps(magnitude, _mm512_set1_ps(-2 * kLog2E)));
  const __m512 quotient = _mm512_div_ps(_mm512_sub_ps(one, e), _mm512_add_ps(one, e));
  const __m512 far = _mm512_or_ps(quotient, _mm512_and_ps(sign, x));
  const __m512 square = _mm512_mul_ps(x, x);
  __m512 p = _mm512_set1_ps(kTanhNear5);
  p = _mm512_fmadd_ps(p, square, _mm512_set1_ps(kTanhNear4));
  p = _mm512_fmadd_ps(p, square, _mm512_set1_ps(kTanhNear3));
  p = _mm512_fmadd_ps(p, square, _mm512_set1_ps(kTanhNear2));
  p = _mm512_fmadd_ps(p, square, _mm512_set1_ps(kTanhNear1));
  const __m512 near = _mm512_fmadd_ps(_mm512_mul_ps(p, square), x, x);
  const __mmask16 is_near = _mm512_cmp_ps_mask(magnitude, _mm512_set1_ps(kTanhNear), _CMP_LT_OQ);
  return _mm512_mask_mov_ps(far, is_near, near);
}

/// Element r of the result is (bf16 of even[r], bf16 of odd[r]), even in the low half.
PANDO_AVX512_INLINE __m512i bf16_pairs(__m512 even, __m512 odd) {
  const __m512i both = (__m512i)_mm512_cvtne2ps_pbh(odd, even);
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, both);
}

/// Transposes a 16 x 16 matrix of 32-bit values.
PANDO_AVX512_INLINE void transpose_16x16(__m512i (&m)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(m[i], m[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(m[i], m[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    m[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    m[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    m[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    m[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(m[i], m[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(m[i], m[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(m[i + 8], m[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(m[i + 8], m[i + 12], 0xdd);
  }
  for (int i = 0; i < 4; ++i) {
    m[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    m[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    m[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    m[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  }
}

/// Undoes the interleaving of V: `low` holds dims 8i + 0..3 of 32, `high` dims 8i + 4..7. Adding 0
/// turns -0, whose sign could depend on tokens that the row does not see, into +0.
PANDO_AVX512_INLINE void store_natural(__m512 low, __m512 high, float* to) {
  const __m512i first = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
  const __m512i last =
      _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
  const __m512 zero = _mm512_setzero_ps();
  _mm512_store_ps(to, _mm512_add_ps(_mm512_permutex2var_ps(low, first, high), zero));
  _mm512_store_ps(to + 16, _mm512_add_ps(_mm512_permutex2var_ps(low, last, high), zero));
}

PANDO_AVX512_INLINE void store_bf16(const float* from, int32_t count, uint16_t* to) {
  for (int32_t i = 0; i < count; i += 16) {
    const __m256i values = (__m256i)_mm512_cvtneps_pbh(_mm512_load_ps(from + i));
    const uint32_t left = static_cast<uint32_t>(count - i);
    _mm256_mask_storeu_epi16(to + i, left >= 16 ? 0xffff : (1u << left) - 1, values);
  }
}

}  // namespace pando
