// The narrow kernel with products by multiply-add in fp32, for every element type and target.
// clang-format off
#include "cpu/simd_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/narrow.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// clang-format on

#include "cpu/narrow-inl.h"

HWY_BEFORE_NAMESPACE();
namespace pando::HWY_NAMESPACE {
namespace {

template <class E>
struct FmaProducts : E {
  using T = typename E::T;
  using Query = float;
  struct Chunk {
    VF a, b;
  };
  using Values = Chunk;
  using Weights = VF;
  static constexpr int32_t kStep = 1;

  static HWY_INLINE Chunk load_keys(const T* from) {
    Chunk chunk;
    E::load_chunk(from, chunk.a, chunk.b);
    return chunk;
  }
  static HWY_INLINE Chunk load_keys_tail(const T* from, int32_t count) {
    Chunk chunk;
    E::load_tail(from, count, chunk.a, chunk.b);
    return chunk;
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

UnitKernel narrow_kernel_of(DType dtype) {
  switch (dtype) {
    case DType::kF32: return attend_narrow<FmaProducts<ElementF32>>;
    case DType::kBF16: return attend_narrow<FmaProducts<ElementBF16>>;
    case DType::kF16: return attend_narrow<FmaProducts<ElementF16>>;
  }
  return nullptr;
}

}  // namespace
}  // namespace pando::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pando {
HWY_EXPORT(narrow_kernel_of);
UnitKernel narrow_kernel(DType dtype) { return HWY_DYNAMIC_DISPATCH(narrow_kernel_of)(dtype); }
}  // namespace pando
#endif
