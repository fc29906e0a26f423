// clang-format off
#include "cpu/simd_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/burst.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// clang-format on

#include "cpu/burst.h"

#include "cpu/simd-inl.h"
#if HWY_ARCH_X86
#include "cpu/matrix_vectors.h"
#endif

HWY_BEFORE_NAMESPACE();
namespace pando::HWY_NAMESPACE {
namespace {

int64_t arithmetic_burst_of(int64_t rounds, float& sink) {
  constexpr int kChains = 12;  // enough to hide the latency, few enough for 16 registers
  const DF d;
  VF acc[kChains];
  HWY_UNROLL(12)
  for (int i = 0; i < kChains; ++i) acc[i] = hn::Set(d, static_cast<float>(i));
  const VF factor = hn::Set(d, 0.999f);
  const VF summand = hn::Set(d, sink);
  for (int64_t round = 0; round < rounds; ++round) {
    HWY_UNROLL(12)
    for (VF& chain : acc) chain = hn::MulAdd(chain, factor, summand);
  }
  HWY_UNROLL(12)
  for (int i = 1; i < kChains; ++i) acc[0] = hn::Add(acc[0], acc[i]);
  sink = hn::GetLane(acc[0]);
  return rounds * kChains * kLanes * 2;
}

float read_burst_of(const std::byte* from, int64_t bytes) {
  constexpr int kChains = 8;
  // The hardware prefetcher alone stays a quarter below what memory can deliver on an AMD Zen 4.
  constexpr int64_t kAheadBytes = 4096;
  const DF d;
  const float* const values = reinterpret_cast<const float*>(from);
  VF acc[kChains];
  HWY_UNROLL(8)
  for (VF& chain : acc) chain = hn::Zero(d);
  const int64_t count = bytes / static_cast<int64_t>(sizeof(float));
  for (int64_t at = 0; at < count; at += kChains * kLanes) {
    for (int64_t line = 0; line < kChains * kLanes * 4; line += 64) {
      __builtin_prefetch(from + at * 4 + line + kAheadBytes, 0, 2);
    }
    HWY_UNROLL(8)
    for (int i = 0; i < kChains; ++i) {
      acc[i] = hn::Add(acc[i], hn::LoadU(d, values + at + i * kLanes));
    }
  }
  HWY_UNROLL(8)
  for (int i = 1; i < kChains; ++i) acc[0] = hn::Add(acc[0], acc[i]);
  return hn::GetLane(acc[0]);
}

}  // namespace
}  // namespace pando::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pando {

HWY_EXPORT(arithmetic_burst_of);
HWY_EXPORT(read_burst_of);

int64_t arithmetic_burst(int64_t rounds, float& sink) {
  return HWY_DYNAMIC_DISPATCH(arithmetic_burst_of)(rounds, sink);
}
float read_burst(const std::byte* from, int64_t bytes) {
  return HWY_DYNAMIC_DISPATCH(read_burst_of)(from, bytes);
}

#if HWY_ARCH_X86
PANDO_AVX512 int64_t dot_burst(int64_t rounds, float& sink) {
  constexpr int kChains = 12;
  const __m512i factor = _mm512_set1_epi16(0x3f00);  // 0.5
  __m512 acc[kChains];
  HWY_UNROLL(12)
  for (int i = 0; i < kChains; ++i) acc[i] = _mm512_set1_ps(sink + static_cast<float>(i));
  for (int64_t round = 0; round < rounds; ++round) {
    HWY_UNROLL(12)
    for (__m512& chain : acc) {
      chain = _mm512_dpbf16_ps(chain, (__m512bh)factor, (__m512bh)factor);
    }
  }
  HWY_UNROLL(12)
  for (int i = 1; i < kChains; ++i) acc[0] = _mm512_add_ps(acc[0], acc[i]);
  sink = _mm512_cvtss_f32(acc[0]);
  return rounds * kChains * 16 * 4;
}
#else
int64_t dot_burst(int64_t, float&) { return 0; }
#endif

}  // namespace pando
#endif
