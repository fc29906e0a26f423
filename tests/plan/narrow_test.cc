// Narrow units in the schedules of plans for CUDA: which there are, that they miss nothing, and
// that nobody can claim them.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>

#include "forest/batch_literal.h"
#include "pando/error.h"
#include "pando/plan.h"
#include "plan/coverage.h"
#include "plan/schedule_reader.h"

namespace pando {
namespace {

using testing::OwnedBatch;
using testing::plan_problem;

AttentionSpec spec_of(int32_t q_heads, int32_t kv_heads, DType kv_dtype = DType::kE4M3) {
  AttentionSpec spec;
  spec.q_heads = q_heads;
  spec.kv_heads = kv_heads;
  spec.head_dim = 128;
  spec.kv_dtype = kv_dtype;
  return spec;
}

/// Sequences of so many tokens that share nothing.
OwnedBatch unshared(const std::vector<int32_t>& tokens, int32_t page_tokens = 16) {
  std::vector<std::vector<int32_t>> pages(tokens.size());
  int32_t next = 0;
  for (size_t i = 0; i < tokens.size(); ++i) {
    for (int32_t at = 0; at < tokens[i]; at += page_tokens) pages[i].push_back(next++);
  }
  OwnedBatch batch = OwnedBatch::of(std::move(pages), page_tokens);
  batch.kv_len = tokens;
  return batch;
}

Plan plan_on(int32_t thread_blocks, OwnedBatch& batch, const AttentionSpec& spec,
             const PlanOptions& options = {}) {
  DeviceProfile profile = h100_profile();
  profile.workers = thread_blocks;
  return plan(discover(batch.view()), spec, profile, options);
}

testing::DecodedSchedule decode(const Plan& plan) {
  return testing::ScheduleReader(plan).decoded();
}

int64_t narrow_units(const Plan& plan) {
  return std::ranges::count(decode(plan).units, true, &testing::ScheduledUnit::narrow);
}

/// A kernel without work for all its thread blocks, or for any.
TEST(NarrowUnits, are_not_claimed_by_thread_blocks_without_units) {
  for (const int32_t tokens : {0, 16}) {
    OwnedBatch batch = unshared({tokens});
    const Plan p = plan_on(132, batch, spec_of(8, 2));
    EXPECT_EQ(plan_problem(batch.view(), spec_of(8, 2), p), "");
    EXPECT_EQ(narrow_units(p), tokens == 0 ? 0 : 2);
    EXPECT_NO_THROW(Plan::from_bytes(p.bytes()));
  }
}

}  // namespace
}  // namespace pando
