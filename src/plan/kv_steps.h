// Pages and kv heads as one dimension of a tensor map, which has five and not six.
#pragma once

#include <cstdint>
#include <limits>
#include <numeric>

#include "pando/attention.h"

namespace pando::cuda {

/// Head h of page p is entry `page` * p + `head` * h, and `unit` elements lie between two entries.
struct KvSteps {
  int64_t unit;
  int64_t page, head;

  static KvSteps of(const KvLayout& kv) {
    // The stride of what there is one of may be anything.
    const int64_t page_stride = kv.num_pages > 1 ? kv.page_stride : 0;
    const int64_t head_stride = kv.kv_heads > 1 ? kv.head_stride : 0;
    const int64_t unit = std::gcd(page_stride, head_stride);
    if (unit == 0) return {kv.head_dim, 0, 0};
    return {unit, page_stride / unit, head_stride / unit};
  }
  /// Up to that of the last head of the last page.
  int64_t entries(const KvLayout& kv) const {
    return (kv.num_pages - 1) * page + (kv.kv_heads - 1) * head + 1;
  }
  /// Whether all of them can be counted.
  bool fit(const KvLayout& kv) const { return entries(kv) <= std::numeric_limits<int32_t>::max(); }
};

}  // namespace pando::cuda
