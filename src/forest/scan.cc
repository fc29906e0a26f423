#include "forest/scan.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "forest/scan.cc"
#include <hwy/foreach_target.h>
#include <hwy/highway.h>

HWY_BEFORE_NAMESPACE();
namespace pando::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

uint32_t max_unsigned_of(const int32_t* ids, int64_t count) {
  const auto* values = reinterpret_cast<const uint32_t*>(ids);
  const hn::ScalableTag<uint32_t> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  auto top_a = hn::Zero(d);
  auto top_b = hn::Zero(d);
  int64_t i = 0;
  for (; i + 2 * lanes <= count; i += 2 * lanes) {
    top_a = hn::Max(top_a, hn::LoadU(d, values + i));
    top_b = hn::Max(top_b, hn::LoadU(d, values + i + lanes));
  }
  uint32_t top = hn::GetLane(hn::MaxOfLanes(d, hn::Max(top_a, top_b)));
  for (; i < count; ++i) top = values[i] > top ? values[i] : top;
  return top;
}

int64_t common_prefix_of(const int32_t* a, const int32_t* b, int64_t count) {
  const hn::ScalableTag<int32_t> d;
  const auto lanes = static_cast<int64_t>(hn::Lanes(d));
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) {
    const auto differs = hn::Ne(hn::LoadU(d, a + i), hn::LoadU(d, b + i));
    const intptr_t first = hn::FindFirstTrue(d, differs);
    if (first >= 0) return i + first;
  }
  while (i < count && a[i] == b[i]) ++i;
  return i;
}

}  // namespace pando::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pando {

HWY_EXPORT(max_unsigned_of);
HWY_EXPORT(common_prefix_of);

uint32_t max_unsigned(const int32_t* ids, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(max_unsigned_of)(ids, count);
}

int64_t common_prefix(const int32_t* a, const int32_t* b, int64_t count) {
  return HWY_DYNAMIC_DISPATCH(common_prefix_of)(a, b, count);
}

}  // namespace pando
#endif
