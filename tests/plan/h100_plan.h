// What the tests of schedules plan: batches with one prefix, for an H100.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "forest/batch_literal.h"
#include "pando/forest.h"
#include "pando/plan.h"
#include "pando/profile.h"

namespace pando::testing {

inline AttentionSpec spec_of(int32_t q_heads, int32_t kv_heads) {
  AttentionSpec spec;
  spec.q_heads = q_heads;
  spec.kv_heads = kv_heads;
  spec.head_dim = 128;
  return spec;
}

/// `sequences` sequences of `own_pages` pages each after `shared_pages` common ones.
inline OwnedBatch shared_prefix(int32_t sequences, int32_t shared_pages, int32_t own_pages) {
  std::vector<std::vector<int32_t>> pages(sequences);
  int32_t next = shared_pages;
  for (auto& row : pages) {
    for (int32_t p = 0; p < shared_pages; ++p) row.push_back(p);
    for (int32_t p = 0; p < own_pages; ++p) row.push_back(next++);
  }
  return OwnedBatch::of(std::move(pages), 16);
}

inline Plan h100_plan(OwnedBatch& batch, const AttentionSpec& spec,
                      Sharing sharing = Sharing::kAll) {
  return plan(discover(batch.view()), spec, h100_profile(), {.sharing = sharing});
}

}  // namespace pando::testing
