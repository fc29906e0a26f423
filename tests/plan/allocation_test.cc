// discover, update and plan stop allocating once their memory has grown to the batch.
#include <gtest/gtest.h>

#include <memory>

#include "forest/batch_literal.h"
#include "pando/cpu.h"
#include "pando/plan.h"
#include "support/allocation_counter.h"

namespace pando {
namespace {

using testing::allocations;
using testing::OwnedBatch;

OwnedBatch batch_of(int32_t sequences, int32_t shared_pages) {
  std::vector<std::vector<int32_t>> pages(sequences);
  int32_t next = 1000;
  for (auto& row : pages) {
    for (int32_t p = 0; p < shared_pages; ++p) row.push_back(p);
    for (int32_t p = 0; p < 4; ++p) row.push_back(next++);
  }
  OwnedBatch batch = OwnedBatch::of(std::move(pages), 16);
  for (int32_t& tokens : batch.kv_len) tokens -= 20;
  return batch;
}

class Allocation : public ::testing::TestWithParam<bool> {};

TEST_P(Allocation, stops_after_warm_up) {
  const bool for_h100 = GetParam();
  OwnedBatch large = batch_of(64, 40);
  OwnedBatch small = batch_of(17, 3);
  AttentionSpec spec;
  spec.q_heads = 8;
  spec.kv_heads = 2;
  spec.head_dim = 128;
  Planner planner(for_h100 ? h100_profile() : cpu_profile(2));
  Forest forest;
  Plan plan;
  const BatchView views[] = {large.view(), small.view()};
  const int32_t changed[] = {3};
  const auto serve = [&] {
    for (const BatchView& view : views) {
      for (const Sharing sharing : {Sharing::kAuto, Sharing::kAll, Sharing::kNone}) {
        for (const bool invariant : {false, true}) {
          forest.discover(view);
          planner.plan(forest, spec, {sharing, invariant, 512}, plan);
        }
      }
    }
    // A decode step: every sequence grows, one is replaced.
    for (int32_t& tokens : small.kv_len) ++tokens;
    forest.update(views[1], changed);
    planner.plan(forest, spec, {}, plan);
    for (int32_t& tokens : small.kv_len) --tokens;
  };
  serve();
  const int64_t before = allocations();
  serve();
  EXPECT_EQ(allocations() - before, 0);
}

INSTANTIATE_TEST_SUITE_P(, Allocation, ::testing::Values(false, true),
                         [](const auto& info) { return info.param ? "h100" : "cpu"; });

TEST(AllocationCounter, counts) {
  const int64_t before = allocations();
  const auto one = std::make_unique<int>(1);
  EXPECT_EQ(allocations() - before, *one);
}

}  // namespace
}  // namespace pando
