#include "plan/kv_steps.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

namespace pando::cuda {
namespace {

/// Layouts that caches have: by head or by token, K and V side by side, gaps, one of a kind.
std::vector<KvLayout> layouts() {
  std::vector<KvLayout> all = {KvLayout::hnd(5, 16, 3, 128), KvLayout::nhd(5, 16, 3, 128),
                               KvLayout::nhd(4, 1, 2, 64)};
  KvLayout beside_v = KvLayout::hnd(5, 64, 8, 128);
  beside_v.page_stride *= 2;
  all.push_back(beside_v);
  KvLayout gaps = KvLayout::hnd(7, 32, 4, 256);
  gaps.token_stride += 8;
  gaps.head_stride = 32 * gaps.token_stride + 24;
  gaps.page_stride = 4 * gaps.head_stride + 40;
  all.push_back(gaps);
  KvLayout one_page = KvLayout::hnd(1, 16, 4, 128);
  one_page.page_stride = 7;
  all.push_back(one_page);
  KvLayout one_head = KvLayout::nhd(6, 16, 1, 128);
  one_head.head_stride = 3;
  all.push_back(one_head);
  KvLayout one_of_each = KvLayout::hnd(1, 16, 1, 128);
  one_of_each.page_stride = 5, one_of_each.head_stride = 3;
  all.push_back(one_of_each);
  return all;
}

TEST(KvSteps, lead_to_every_head_of_every_page) {
  for (const KvLayout& kv : layouts()) {
    const KvSteps steps = KvSteps::of(kv);
    for (int64_t page = 0; page < kv.num_pages; ++page) {
      for (int32_t head = 0; head < kv.kv_heads; ++head) {
        const int64_t entry = page * steps.page + head * steps.head;
        EXPECT_EQ(entry * steps.unit, kv.offset(page, head, 0))
            << "page_stride " << kv.page_stride << ", head_stride " << kv.head_stride;
        EXPECT_LT(entry, steps.entries(kv));
      }
    }
  }
}

TEST(KvSteps, are_as_wide_as_can_be) {
  EXPECT_EQ(KvSteps::of(KvLayout::hnd(5, 16, 3, 128)).unit, 16 * 128);
  EXPECT_EQ(KvSteps::of(KvLayout::nhd(5, 16, 3, 128)).unit, 128);
}

TEST(KvSteps, must_fit_32_bits) {
  KvLayout kv = KvLayout::hnd(int64_t{1} << 20, 16, 2, 128);
  EXPECT_TRUE(KvSteps::of(kv).fit(kv));
  kv.page_stride = 2048 * 2048 + 8;  // of which 8 divides the head_stride
  EXPECT_FALSE(KvSteps::of(kv).fit(kv));
}

}  // namespace
}  // namespace pando::cuda
