// Vector building blocks of the CPU kernels: element types, exp2, row output. Included once a
// target.
#if defined(PANDO_CPU_SIMD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PANDO_CPU_SIMD_INL_H_
#undef PANDO_CPU_SIMD_INL_H_
#else
#define PANDO_CPU_SIMD_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/convert.h"
#include "cpu/unit.h"
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace pando::HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using DI = hn::RebindToSigned<DF>;
using DU = hn::RebindToUnsigned<DF>;
using VF = hn::Vec<DF>;
using MF = hn::Mask<DF>;
/// head_dim is a multiple of 8, so vectors of at most 8 lanes need no tail.
using DF8 = hn::CappedTag<float, 8>;

inline constexpr int32_t kLanes = HWY_LANES(float);
inline constexpr int32_t kChunk = 2 * kLanes;  // elements that one load_chunk reads
inline constexpr float kMinusInf = -std::numeric_limits<float>::infinity();

/// 2^x for x <= 0 (and a little above): relative error below 2e-7, exactly 0 below -126 and for
/// -inf, exactly 1 at 0. A NaN stays one.
HWY_INLINE VF exp2_vector(VF x) {
  const DF d;
  const DU du;
  // Adding 1.5 * 2^23 leaves round(x) in the low bits; 127 makes it the exponent of 2^round(x).
  const VF magic = hn::Set(d, 12582912.0f + 127);
  const VF shifted = hn::Add(x, magic);
  const VF f = hn::Sub(x, hn::Sub(shifted, magic));
  // Minimax on [-1/2, 1/2] with the constant term fixed to 1.
  VF p = hn::Set(d, 0x1.470b4ap-13f);
  p = hn::MulAdd(p, f, hn::Set(d, 0x1.5f7276p-10f));
  p = hn::MulAdd(p, f, hn::Set(d, 0x1.3b270ep-7f));
  p = hn::MulAdd(p, f, hn::Set(d, 0x1.c6ae72p-5f));
  p = hn::MulAdd(p, f, hn::Set(d, 0x1.ebfbe2p-3f));
  p = hn::MulAdd(p, f, hn::Set(d, 0x1.62e430p-1f));
  p = hn::MulAdd(p, f, hn::Set(d, 1.0f));
  // A product, since bits added to those of a NaN could make a number of it.
  const VF scaled = hn::Mul(p, hn::BitCast(d, hn::ShiftLeft<23>(hn::BitCast(du, shifted))));
  return hn::IfThenElse(hn::Lt(x, hn::Set(d, -126.0f)), hn::Zero(d), scaled);
}

/// tanh(x): relative error below 4e-7, +-1 at the ends, 0 at 0. A NaN stays one.
HWY_INLINE VF tanh_vector(VF x) {
  const DF d;
  const VF one = hn::Set(d, 1.0f);
  const VF magnitude = hn::Abs(x);
  // Far from 0, (1 - e) / (1 + e) with e = exp(-2 |x|); near it that would cancel.
  const VF e = exp2_vector(hn::Mul(magnitude, hn::Set(d, -2 * kLog2E)));
  const VF far = hn::CopySign(hn::Div(hn::Sub(one, e), hn::Add(one, e)), x);
  const VF square = hn::Mul(x, x);
  // Minimax of tanh(x) / x - 1 on [0, kTanhNear].
  VF p = hn::Set(d, kTanhNear5);
  p = hn::MulAdd(p, square, hn::Set(d, kTanhNear4));
  p = hn::MulAdd(p, square, hn::Set(d, kTanhNear3));
  p = hn::MulAdd(p, square, hn::Set(d, kTanhNear2));
  p = hn::MulAdd(p, square, hn::Set(d, kTanhNear1));
  const VF near = hn::MulAdd(hn::Mul(p, square), x, x);
  return hn::IfThenElse(hn::Lt(magnitude, hn::Set(d, kTanhNear)), near, far);
}

/// Puts scores under the soft cap, in place: tanh(|scale| / cap * q.k). `count` is a
/// multiple of kLanes. Those of tokens that are not seen may become anything; the mask comes after.
HWY_INLINE void cap_scores(const ScoreScale& scale, int64_t count, float* scores) {
  const DF d;
  const VF into_cap = hn::Set(d, scale.into_cap);
  for (int64_t i = 0; i < count; i += kLanes) {
    hn::Store(tanh_vector(hn::Mul(hn::Load(d, scores + i), into_cap)), d, scores + i);
  }
}

// An element type knows how to read
//   load_row:   a row of a head as fp32 in natural order,
//   load_chunk: kChunk elements as two vectors in an order of its own, the cheapest one,
//   load_tail:  the same for the first `count` elements, a multiple of 8, the others zero,
// how to undo the order of load_chunk (store_chunk), and how to write a row (store_row).

#undef PANDO_MASKED_TAILS
#if HWY_TARGET <= HWY_AVX3 && HWY_ARCH_X86
#define PANDO_MASKED_TAILS 1
#else
#define PANDO_MASKED_TAILS 0
#endif

// Without F16C, Highway converts fp16 in software that knows neither NaN nor infinity.
#undef PANDO_EMULATES_F16
#if HWY_ARCH_X86 && HWY_TARGET > HWY_AVX2
#define PANDO_EMULATES_F16 1
#else
#define PANDO_EMULATES_F16 0
#endif

/// Copies a tail to zero-filled memory for targets whose masked loads read past the mask.
template <typename T>
struct TailBuffer {
  alignas(64) T values[kChunk] = {};
  HWY_INLINE TailBuffer(const T* from, int32_t count) {
    std::memcpy(values, from, count * sizeof(T));
  }
};

struct ElementF32 {
  using T = float;
  static constexpr DType kDType = DType::kF32;

  static HWY_INLINE void load_chunk(const T* from, VF& a, VF& b) {
    a = hn::LoadU(DF(), from);
    b = hn::LoadU(DF(), from + kLanes);
  }
  static HWY_INLINE void load_tail(const T* from, int32_t count, VF& a, VF& b) {
#if PANDO_MASKED_TAILS
    const DF d;
    a = hn::MaskedLoad(hn::FirstN(d, std::min(count, kLanes)), d, from);
    b = hn::MaskedLoad(hn::FirstN(d, std::max(count - kLanes, 0)), d, from + kLanes);
#else
    const TailBuffer<T> buffer(from, count);
    load_chunk(buffer.values, a, b);
#endif
  }
  static HWY_INLINE void store_chunk(VF a, VF b, float* to) {
    hn::StoreU(a, DF(), to);
    hn::StoreU(b, DF(), to + kLanes);
  }
  static HWY_INLINE void load_row(const T* from, int32_t count, float* to) {
    std::memcpy(to, from, count * sizeof(T));
  }
  static HWY_INLINE void store_row(const float* from, int32_t count, T* to) {
    std::memcpy(to, from, count * sizeof(T));
  }
};

struct ElementBF16 {
  using T = uint16_t;
  static constexpr DType kDType = DType::kBF16;

  /// Even elements, then odd ones: one shift and one mask instead of widening shuffles.
  static HWY_INLINE void split(hn::Vec<DU> pairs, VF& a, VF& b) {
    const DU du;
    a = hn::BitCast(DF(), hn::ShiftLeft<16>(pairs));
    b = hn::BitCast(DF(), hn::And(pairs, hn::Set(du, 0xffff0000u)));
  }
  static HWY_INLINE void load_chunk(const T* from, VF& a, VF& b) {
    const hn::Repartition<uint16_t, DF> d16;
    split(hn::BitCast(DU(), hn::LoadU(d16, from)), a, b);
  }
  static HWY_INLINE void load_tail(const T* from, int32_t count, VF& a, VF& b) {
#if PANDO_MASKED_TAILS
    const hn::Repartition<uint16_t, DF> d16;
    split(hn::BitCast(DU(), hn::MaskedLoad(hn::FirstN(d16, count), d16, from)), a, b);
#else
    const TailBuffer<T> buffer(from, count);
    load_chunk(buffer.values, a, b);
#endif
  }
  static HWY_INLINE void store_chunk(VF a, VF b, float* to) {
    hn::StoreInterleaved2(a, b, DF(), to);
  }
  template <class D>
  static HWY_INLINE void widen(D d, const T* from, float* to) {
    const hn::Rebind<uint16_t, D> d16;
    const hn::RebindToUnsigned<D> d32;
    const auto wide = hn::PromoteTo(d32, hn::LoadU(d16, from));
    hn::StoreU(hn::BitCast(d, hn::ShiftLeft<16>(wide)), d, to);
  }
  static HWY_INLINE void load_row(const T* from, int32_t count, float* to) {
    int32_t i = 0;
    for (; i + kLanes <= count; i += kLanes) widen(DF(), from + i, to + i);
    if (i < count) widen(DF8(), from + i, to + i);
  }
  static HWY_INLINE void store_row(const float* from, int32_t count, T* to) {
    const DF8 d;
    const hn::RebindToUnsigned<DF8> d32;
    const hn::Rebind<uint16_t, DF8> d16;
    const hn::RebindToSigned<DF8> di;
    for (int32_t i = 0; i < count; i += static_cast<int32_t>(hn::Lanes(d))) {
      const auto value = hn::LoadU(d, from + i);
      const auto bits = hn::BitCast(d32, value);
      const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(d32, 1u));
      const auto even = hn::Add(hn::Add(bits, hn::Set(d32, 0x7fffu)), odd);
      const auto quiet = hn::Or(bits, hn::Set(d32, 0x400000u));
      const auto is_number = hn::RebindMask(d32, hn::Eq(value, value));
      const auto rounded = hn::ShiftRight<16>(hn::IfThenElse(is_number, even, quiet));
      hn::StoreU(hn::DemoteTo(d16, hn::BitCast(di, rounded)), d16, to + i);
    }
  }
};

/// What follows from E::widen, fp32 of as many elements as a vector has lanes, in their order.
template <class E, class Stored>
struct WidenedElement {
  using T = Stored;

  static HWY_INLINE void load_chunk(const T* from, VF& a, VF& b) {
    a = E::widen(DF(), from);
    b = E::widen(DF(), from + kLanes);
  }
  static HWY_INLINE void load_tail(const T* from, int32_t count, VF& a, VF& b) {
    const TailBuffer<T> buffer(from, count);
    load_chunk(buffer.values, a, b);
  }
  static HWY_INLINE void store_chunk(VF a, VF b, float* to) { ElementF32::store_chunk(a, b, to); }
  static HWY_INLINE void load_row(const T* from, int32_t count, float* to) {
    int32_t i = 0;
    for (; i + kLanes <= count; i += kLanes) hn::StoreU(E::widen(DF(), from + i), DF(), to + i);
    if (i < count) hn::StoreU(E::widen(DF8(), from + i), DF8(), to + i);
  }
};

struct ElementF16 : WidenedElement<ElementF16, uint16_t> {
  static constexpr DType kDType = DType::kF16;

  template <class D>
  static HWY_INLINE hn::Vec<D> widen(D d, const T* from) {
    const hn::Rebind<uint16_t, D> d16;
#if PANDO_EMULATES_F16
    const hn::RebindToUnsigned<D> du;
    const auto bits = hn::PromoteTo(du, hn::LoadU(d16, from));
    const auto magnitude = hn::And(bits, hn::Set(du, 0x7fffu));
    const auto sign = hn::ShiftLeft<16>(hn::Xor(bits, magnitude));
    const auto scaled = hn::Mul(hn::BitCast(d, hn::ShiftLeft<13>(magnitude)), hn::Set(d, 0x1p112f));
    const auto is_finite = hn::Lt(scaled, hn::Set(d, 65536.0f));
    const auto special = hn::Or(hn::BitCast(du, scaled), hn::Set(du, 0x7f800000u));
    const auto value = hn::IfThenElse(is_finite, scaled, hn::BitCast(d, special));
    return hn::Or(value, hn::BitCast(d, sign));
#else
    const hn::Rebind<hwy::float16_t, D> df16;
    return hn::PromoteTo(d, hn::BitCast(df16, hn::LoadU(d16, from)));
#endif
  }
  static HWY_INLINE void store_row(const float* from, int32_t count, T* to) {
#if PANDO_EMULATES_F16
    for (int32_t i = 0; i < count; ++i) to[i] = float_to_f16(from[i]);
#else
    const DF8 d;
    const hn::Rebind<uint16_t, DF8> d16;
    const hn::Rebind<hwy::float16_t, DF8> df16;
    for (int32_t i = 0; i < count; i += static_cast<int32_t>(hn::Lanes(d))) {
      const auto half = hn::DemoteTo(df16, hn::LoadU(d, from + i));
      hn::StoreU(hn::BitCast(d16, half), d16, to + i);
    }
#endif
  }
};

/// Of K and V alone. No step of the conversion has a subnormal number, which the processor may be
/// told to take for 0.
struct ElementE4M3 : WidenedElement<ElementE4M3, uint8_t> {
  static constexpr DType kDType = DType::kE4M3;

  template <class D>
  static HWY_INLINE hn::Vec<D> widen(D d, const T* from) {
    const hn::Rebind<uint8_t, D> d8;
    const hn::RebindToUnsigned<D> du;
    const auto bits = hn::PromoteTo(du, hn::LoadU(d8, from));
    const auto magnitude = hn::And(bits, hn::Set(du, 0x7fu));
    const auto sign = hn::ShiftLeft<24>(hn::Xor(bits, magnitude));
    const auto in_place = hn::ShiftLeft<20>(magnitude);
    const auto normal = hn::Add(in_place, hn::Set(du, 120u << 23));
    // The least exponent has no leading one: with it, and without it again.
    const auto one = hn::Set(d, 0x1p-6f);
    const auto with_one = hn::BitCast(d, hn::Or(in_place, hn::BitCast(du, one)));
    const auto is_normal = hn::RebindMask(d, hn::Gt(magnitude, hn::Set(du, 7u)));
    const auto value = hn::IfThenElse(is_normal, hn::BitCast(d, normal), hn::Sub(with_one, one));
    const auto is_nan = hn::RebindMask(d, hn::Eq(magnitude, hn::Set(du, 0x7fu)));
    const auto nan = hn::BitCast(d, hn::Set(du, 0x7fc00000u));
    return hn::Or(hn::IfThenElse(is_nan, nan, value), hn::BitCast(d, sign));
  }
};

/// Writes a row's normalised result; `lse_ln` = -inf stands for an empty row.
template <class E>
HWY_INLINE void write_row(const RowTarget& target, float* o, int32_t head_dim, float lse_ln) {
  target.add_sink(o, head_dim, lse_ln);
  if (target.lse != nullptr) *target.lse = lse_ln;
  if (target.partial) {
    ElementF32::store_row(o, head_dim, reinterpret_cast<float*>(target.o));
  } else {
    E::store_row(o, head_dim, reinterpret_cast<typename E::T*>(target.o));
  }
}

/// Natural log-sum-exp from the largest unscaled score and the sum of the weights relative to it,
/// which tells an empty row: a NaN reaches every sum, but a maximum may pass it over.
HWY_INLINE float lse_from(const ScoreScale& scale, float row_max, float row_sum) {
  if (row_sum == 0) return kMinusInf;
  return row_max * scale.scale_ln + std::log(row_sum);
}

/// Weight of a score relative to the row's largest one, `top`.
HWY_INLINE VF weight(VF score, VF top, VF scale_log2) {
  return exp2_vector(hn::Mul(hn::Sub(score, top), scale_log2));
}

}  // namespace pando::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // PANDO_CPU_SIMD_INL_H_
