// Merging partial results of a row, and the small services that depend on the vector target.
// clang-format off
#include "cpu/simd_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/merge_kernel.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// clang-format on

#include "cpu/kernels.h"
#include "cpu/simd-inl.h"
#include "pando/merge.h"

HWY_BEFORE_NAMESPACE();
namespace pando::HWY_NAMESPACE {
namespace {

/// acc = a * acc + b * from. A weight of 0 leaves its side unread, as merge.h demands.
HWY_INLINE void weigh(float a, float* acc, float b, const float* from, int32_t head_dim) {
  if (b == 0.0f) {
    if (a == 1.0f) return;
    for (int32_t i = 0; i < head_dim; ++i) acc[i] = a == 0.0f ? 0.0f : a * acc[i];
    return;
  }
  const DF8 d;
  const auto weight_a = hn::Set(d, a);
  const auto weight_b = hn::Set(d, b);
  for (int32_t i = 0; i < head_dim; i += static_cast<int32_t>(hn::Lanes(d))) {
    const auto added = hn::Mul(weight_b, hn::LoadU(d, from + i));
    const auto kept = a == 0.0f ? hn::Zero(d) : hn::Mul(weight_a, hn::LoadU(d, acc + i));
    hn::StoreU(hn::Add(kept, added), d, acc + i);
  }
}

template <class E>
void merge_unit(const MergeUnit& m) {
  const CallView& call = *m.call;
  const int32_t head_dim = call.head_dim;
  for (int64_t packed = m.packed_begin; packed < m.packed_end; ++packed) {
    float lse_ln = kMinusInf;
    std::fill_n(m.accumulator, head_dim, 0.0f);
    for (int32_t s = 0; s < m.source_count; ++s) {
      const int64_t slot =
          int64_t{m.kv_head} * call.partial_slots + m.sources[s] + (packed - m.packed_begin);
      const MergeWeights w = merge_weights(lse_ln, call.partial_lse[slot]);
      weigh(w.a, m.accumulator, w.b, call.partial_o + slot * head_dim, head_dim);
      lse_ln = w.lse;
    }
    Unit row{};
    row.call = &call;
    row.kv_head = m.kv_head;
    row.packed_begin = packed;
    row.partial = -1;
    write_row<E>(row.target(0), m.accumulator, head_dim, lse_ln);
  }
}

MergeKernel merge_kernel_of(DType dtype) {
  switch (dtype) {
    case DType::kF32: return merge_unit<ElementF32>;
    case DType::kBF16: return merge_unit<ElementBF16>;
    case DType::kF16: return merge_unit<ElementF16>;
    case DType::kE4M3: break;  // not of outputs
  }
  return nullptr;
}

/// Calls visit(block) for copies of `count` values in blocks of kLanes, then copies them to `out`.
template <class Visit>
void for_each_block(const float* in, float* out, int64_t count, Visit visit) {
  for (int64_t i = 0; i < count; i += kLanes) {
    float block[kLanes] = {};
    const int64_t n = std::min<int64_t>(kLanes, count - i);
    std::copy_n(in + i, n, block);
    visit(block);
    std::copy_n(block, n, out + i);
  }
}

struct Exp2Block {
  void operator()(float* block) const {
    hn::StoreU(exp2_vector(hn::LoadU(DF(), block)), DF(), block);
  }
};
struct TanhBlock {
  void operator()(float* block) const {
    hn::StoreU(tanh_vector(hn::LoadU(DF(), block)), DF(), block);
  }
};
void exp2_values_of(const float* in, float* out, int64_t count) {
  for_each_block(in, out, count, Exp2Block());
}
void tanh_values_of(const float* in, float* out, int64_t count) {
  for_each_block(in, out, count, TanhBlock());
}

void e4m3_values_of(float* out) {
  uint8_t codes[256 + 64];  // GCC 12 believes that vectors reach past the last
  for (int i = 0; i < 256; ++i) codes[i] = static_cast<uint8_t>(i);
  ElementE4M3::load_row(codes, 256, out);
}

const char* target_name() { return hwy::TargetName(HWY_TARGET); }

}  // namespace
}  // namespace pando::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pando {

HWY_EXPORT(merge_kernel_of);
HWY_EXPORT(exp2_values_of);
HWY_EXPORT(tanh_values_of);
HWY_EXPORT(e4m3_values_of);
HWY_EXPORT(target_name);

MergeKernel merge_kernel(DType dtype) { return HWY_DYNAMIC_DISPATCH(merge_kernel_of)(dtype); }
void exp2_values(const float* in, float* out, int64_t count) {
  HWY_DYNAMIC_DISPATCH(exp2_values_of)(in, out, count);
}
void tanh_values(const float* in, float* out, int64_t count) {
  HWY_DYNAMIC_DISPATCH(tanh_values_of)(in, out, count);
}
void e4m3_values(float* out) { HWY_DYNAMIC_DISPATCH(e4m3_values_of)(out); }
const char* vector_target_name() { return HWY_DYNAMIC_DISPATCH(target_name)(); }

KernelSet vector_kernels(DType dtype, DType kv_dtype) {
  return {narrow_kernel(dtype, kv_dtype), wide_kernel(dtype, kv_dtype), merge_kernel(dtype), false};
}

}  // namespace pando
#endif
