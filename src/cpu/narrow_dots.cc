// The narrow kernel with AVX-512 dot products of bf16 pairs (VDPBF16PS): pairs of dims in the
// scores, pairs of tokens in the outputs.
// clang-format off
#include "cpu/simd_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/narrow_dots.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// clang-format on

#include "core/check.h"
#include "cpu/matrix.h"

// Highway 1.0 knows no target with these instructions, so one target is compiled with them added.
#undef PANDO_BEFORE_NARROW
#if HWY_TARGET == HWY_AVX3
#define PANDO_BEFORE_NARROW() HWY_PUSH_ATTRIBUTES(HWY_TARGET_STR ",avx512bf16")
#endif
#include "cpu/narrow-inl.h"

#if HWY_TARGET == HWY_AVX3
#include "cpu/matrix_vectors.h"

PANDO_BEFORE_NARROW();
namespace pando::HWY_NAMESPACE {
namespace {

struct DotProducts : ElementBF16 {
  using Out = ElementBF16;
  using Query = uint16_t;
  using Chunk = __m512i;
  struct Values {
    __m512i low, high;  // pairs of tokens at dims 8i + 0..3 and 8i + 4..7
  };
  using Weights = __m512i;
  static constexpr int32_t kStep = 2;
  static constexpr T kUnseen[256] = {};

  static HWY_INLINE Chunk load_keys(const T* from) { return _mm512_loadu_si512(from); }
  static HWY_INLINE Chunk load_keys_tail(const T* from, int32_t count) {
    return _mm512_maskz_loadu_epi16((1u << count) - 1, from);
  }
  static HWY_INLINE Chunk open_query(const T* from) { return load_keys(from); }
  static HWY_INLINE Chunk open_query_tail(const T* from, int32_t count) {
    return load_keys_tail(from, count);
  }
  static HWY_INLINE void store_query(Chunk chunk, float factor, Query* to) {
    _mm512_store_si512(to, times_sign(chunk, factor));
  }
  static HWY_INLINE Chunk load_query(const Query* from) { return _mm512_load_si512(from); }
  static HWY_INLINE VF dot(Chunk k, Chunk q, VF sum) {
    return VF{_mm512_dpbf16_ps(sum.raw, (__m512bh)k, (__m512bh)q)};
  }
  static HWY_INLINE Values interleave(Chunk even, Chunk odd) {
    return {_mm512_unpacklo_epi16(even, odd), _mm512_unpackhi_epi16(even, odd)};
  }
  static HWY_INLINE Values load_values(const T* first, const T* last) {
    return interleave(load_keys(first), load_keys(last));
  }
  static HWY_INLINE Values load_values_tail(const T* first, const T* last, int32_t count) {
    return interleave(load_keys_tail(first, count), load_keys_tail(last, count));
  }
  /// Weights take the place of scores that have been read.
  static HWY_INLINE void store_weights(VF weights, float* row, int32_t t) {
    auto* const to = reinterpret_cast<T*>(row) + t;
    _mm256_store_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(weights.raw));
  }
  static HWY_INLINE Weights load_weights(const float* row, int32_t t) {
    int32_t pair;
    std::memcpy(&pair, reinterpret_cast<const T*>(row) + t, sizeof(pair));
    return _mm512_set1_epi32(pair);
  }
  static HWY_INLINE void add(Weights weight, const Values& values, VF& a, VF& b) {
    a.raw = _mm512_dpbf16_ps(a.raw, (__m512bh)weight, (__m512bh)values.low);
    b.raw = _mm512_dpbf16_ps(b.raw, (__m512bh)weight, (__m512bh)values.high);
  }
  static HWY_INLINE void store_chunk(VF a, VF b, float* to) { store_natural(a.raw, b.raw, to); }
};

/// The same of fp8 K and V, converted where they are read.
struct Fp8DotProducts : DotProducts {
  using T = ElementE4M3::T;
  static constexpr T kUnseen[256] = {};

  static HWY_INLINE Chunk load_keys(const T* from) { return load_keys_tail(from, 32); }
  static HWY_INLINE Chunk load_keys_tail(const T* from, int32_t count) {
    return load_fp8(reinterpret_cast<const std::byte*>(from), count);
  }
  static HWY_INLINE Values load_values(const T* first, const T* last) {
    return interleave(load_keys(first), load_keys(last));
  }
  static HWY_INLINE Values load_values_tail(const T* first, const T* last, int32_t count) {
    return interleave(load_keys_tail(first, count), load_keys_tail(last, count));
  }
};

}  // namespace

void attend_few_dots(const Unit& unit) { attend_narrow<DotProducts>(unit); }
void attend_few_dots_fp8(const Unit& unit) { attend_narrow<Fp8DotProducts>(unit); }

}  // namespace pando::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif

#if HWY_ONCE
namespace pando {

void attend_few_dots(const Unit& unit) {
#if HWY_ARCH_X86
  N_AVX3::attend_few_dots(unit);
#else
  fail(ErrorCode::kUnsupported, "attend_few_dots: this processor has no bf16 dot products");
#endif
}
void attend_few_dots_fp8(const Unit& unit) {
#if HWY_ARCH_X86
  N_AVX3::attend_few_dots_fp8(unit);
#else
  fail(ErrorCode::kUnsupported, "attend_few_dots_fp8: this processor has no bf16 dot products");
#endif
}

}  // namespace pando
#endif
