// The narrow kernel with products by multiply-add in fp32, for every element type and target.
// clang-format off
#include "cpu/simd_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/narrow.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// clang-format on

#include <type_traits>

#include "cpu/narrow-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pando::HWY_NAMESPACE {
namespace {

/// E: of queries and outputs; Kv: of K and V.
template <class E, class Kv = E>
struct FmaProducts : Kv {
  using T = typename Kv::T;
  using Out = E;
  using Query = float;
  struct Chunk {
    VF a, b;
  };
  using Values = Chunk;
  using Weights = VF;
  static constexpr int32_t kStep = 1;

  static HWY_INLINE Chunk load_keys(const T* from) {
    Chunk chunk;
    Kv::load_chunk(from, chunk.a, chunk.b);
    return chunk;
  }
  static HWY_INLINE Chunk load_keys_tail(const T* from, int32_t count) {
    Chunk chunk;
    Kv::load_tail(from, count, chunk.a, chunk.b);
    return chunk;
  }
  static HWY_INLINE Chunk open_query(const typename E::T* from) {
    return open_query_tail(from, kChunk);
  }
  /// In the order of K: where E has another one, that is the natural order.
  static HWY_INLINE Chunk open_query_tail(const typename E::T* from, int32_t count) {
    if constexpr (std::is_same_v<E, Kv>) {
      return count == kChunk ? load_keys(from) : load_keys_tail(from, count);
    } else {
      alignas(64) float values[kChunk] = {};
      E::load_row(from, count, values);
      return load_query(values);
    }
  }
  static HWY_INLINE void store_query(const Chunk& chunk, float factor, float* to) {
    const DF d;
    hn::Store(hn::Mul(chunk.a, hn::Set(d, factor)), d, to);
    hn::Store(hn::Mul(chunk.b, hn::Set(d, factor)), d, to + kLanes);
  }
  static HWY_INLINE Chunk load_query(const float* from) {
    return {hn::Load(DF(), from), hn::Load(DF(), from + kLanes)};
  }
  static HWY_INLINE VF dot(const Chunk& k, const Chunk& q, VF sum) {
    return hn::MulAdd(k.b, q.b, hn::MulAdd(k.a, q.a, sum));
  }
  static HWY_INLINE Values load_values(const T* only, const T* /*same*/) { return load_keys(only); }
  static HWY_INLINE Values load_values_tail(const T* only, const T* /*same*/, int32_t count) {
    return load_keys_tail(only, count);
  }
  static HWY_INLINE void store_weights(VF weights, float* row, int32_t t) {
    hn::Store(weights, DF(), row + t);
  }
  static HWY_INLINE Weights load_weights(const float* row, int32_t t) {
    return hn::Set(DF(), row[t]);
  }
  static HWY_INLINE void add(Weights weight, const Values& values, VF& a, VF& b) {
    a = hn::MulAdd(values.a, weight, a);
    b = hn::MulAdd(values.b, weight, b);
  }
};

template <class E>
UnitKernel narrow_kernel_for(bool fp8) {
  return fp8 ? attend_narrow<FmaProducts<E, ElementE4M3>> : attend_narrow<FmaProducts<E>>;
}

UnitKernel narrow_kernel_of(DType dtype, DType kv_dtype) {
  const bool fp8 = kv_dtype == DType::kE4M3;
  switch (dtype) {
    case DType::kF32: return narrow_kernel_for<ElementF32>(fp8);
    case DType::kBF16: return narrow_kernel_for<ElementBF16>(fp8);
    case DType::kF16: return narrow_kernel_for<ElementF16>(fp8);
    case DType::kE4M3: break;  // not of queries
  }
  return nullptr;
}

}  // namespace
}  // namespace pando::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pando {
HWY_EXPORT(narrow_kernel_of);
UnitKernel narrow_kernel(DType dtype, DType kv_dtype) {
  return HWY_DYNAMIC_DISPATCH(narrow_kernel_of)(dtype, kv_dtype);
}
}  // namespace pando
#endif
