// Narrow units in the schedules of plans for CUDA: which there are, that they miss nothing, and
// that nobody can claim them.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <span>
#include <tuple>
#include <vector>

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

TEST(NarrowUnits, of_an_unshared_batch_of_fp8_are_all_and_need_no_merge) {
  OwnedBatch batch = unshared(std::vector<int32_t>(256, 1024));
  const Plan p = plan_on(132, batch, spec_of(32, 8));
  EXPECT_EQ(plan_problem(batch.view(), spec_of(32, 8), p), "");
  EXPECT_EQ(narrow_units(p), 8 * 64);  // four sequences of a group of 4 each
  EXPECT_EQ(p.header().units, 8 * 64);
  EXPECT_EQ(p.header().partial_rows, 0);
  EXPECT_TRUE(decode(p).merges.empty() && decode(p).exchanges.empty());
}

/// 1030 tokens fill eight tiles and a half.
TEST(NarrowUnits, begin_tiles_of_their_own) {
  OwnedBatch batch = unshared(std::vector<int32_t>(8, 1030));
  const Plan p = plan_on(2, batch, spec_of(32, 2));
  EXPECT_EQ(plan_problem(batch.view(), spec_of(32, 2), p), "");
  EXPECT_EQ(p.header().units, 2 * 8);
  EXPECT_EQ(narrow_units(p), 2 * 8);
}

/// Lists over pairs have none, and gain nothing else where nothing is shared.
TEST(NarrowUnits, are_kept_where_lists_over_pairs_would_come_out_even) {
  std::vector<int32_t> ragged;
  for (int32_t i = 0; i < 256; ++i) ragged.push_back(500 + i * 677 % 1500);
  for (const auto& [group, tokens] :
       {std::pair{4, std::vector<int32_t>(512, 1000)}, {4, ragged}, {8, ragged}, {1, ragged}}) {
    OwnedBatch batch = unshared(tokens);
    const AttentionSpec spec = spec_of(8 * group, 8);
    const Plan p = plan_on(132, batch, spec);
    EXPECT_EQ(plan_problem(batch.view(), spec, p), "");
    EXPECT_EQ(narrow_units(p), p.header().units) << group << ", " << tokens.size();
  }
}

TEST(NarrowUnits, are_for_fp8_at_a_head_dim_of_128_alone) {
  OwnedBatch batch = unshared(std::vector<int32_t>(256, 1024));
  EXPECT_EQ(narrow_units(plan_on(132, batch, spec_of(32, 8, DType::kBF16))), 0);
  AttentionSpec of_64 = spec_of(32, 8);
  of_64.head_dim = 64;
  EXPECT_EQ(narrow_units(plan_on(132, batch, of_64)), 0);
}

/// Four groups of 16 rows have two tiles each, or four.
TEST(NarrowUnits, of_less_than_four_tiles_are_not_cut_from_a_piece) {
  for (const int32_t tokens : {64, 128}) {
    OwnedBatch batch = unshared(std::vector<int32_t>(16, tokens));
    const Plan p = plan_on(2, batch, spec_of(8, 2));
    EXPECT_EQ(plan_problem(batch.view(), spec_of(8, 2), p), "");
    EXPECT_EQ(p.header().units, tokens < 128 ? 2 : 8);
    EXPECT_EQ(narrow_units(p), tokens < 128 ? 0 : 8);
  }
}

/// Nor do their tokens begin tiles of their own, for which nothing would be gained; nor where there
/// are no narrow units at all.
TEST(NarrowUnits, that_would_be_too_small_leave_no_slots_between_tokens) {
  for (const auto& [group, sequences, tokens, halves] :
       {std::tuple{4, 16, 37, 12}, {16, 4, 300, 20}, {16, 4, 512, 32}}) {
    for (const DType kv_dtype : {DType::kE4M3, DType::kBF16}) {
      OwnedBatch batch = unshared(std::vector<int32_t>(sequences, tokens));
      const AttentionSpec spec = spec_of(2 * group, 2, kv_dtype);
      const Plan p = plan_on(2, batch, spec);
      EXPECT_EQ(plan_problem(batch.view(), spec, p), "");
      cuda::ScheduleHeader header;
      std::memcpy(&header, p.schedule().data(), sizeof(header));
      EXPECT_EQ(header.halves, halves) << tokens;
      EXPECT_EQ(narrow_units(p), kv_dtype == DType::kBF16 || tokens < 512 ? 0 : 8) << tokens;
    }
  }
}

/// A piece with a run of more rows than a narrow unit has is left whole.
TEST(NarrowUnits, are_not_cut_from_what_more_rows_read) {
  std::vector<std::vector<int32_t>> pages(8);  // 32 rows behind one page of 1024
  for (int32_t i = 0; i < 8; ++i) {
    for (int32_t page = 0; page < 4; ++page) pages[i].push_back(page);
    for (int32_t page = 0; page < 4; ++page) pages[i].push_back(4 + i * 4 + page);
  }
  OwnedBatch batch = OwnedBatch::of(std::move(pages), 256);
  const PlanOptions shared{.sharing = Sharing::kAll};
  const Plan p = plan_on(2, batch, spec_of(8, 2), shared);
  EXPECT_EQ(plan_problem(batch.view(), spec_of(8, 2), p), "");
  EXPECT_EQ(p.header().units, 2);
  EXPECT_EQ(narrow_units(p), 0);
}

TEST(NarrowUnits, miss_nothing_and_take_nothing_twice) {
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < 24; ++i) tokens.push_back(std::vector{1000, 37, 129, 2500, 640}[i % 5]);
  int64_t narrow = 0, wide = 0;
  for (const int32_t group : {1, 2, 3, 4, 5, 8, 16, 17}) {
    for (const bool drafts : {false, true}) {
      for (const int32_t thread_blocks : {1, 5, 132}) {
        OwnedBatch batch = unshared(tokens);
        if (drafts) {
          for (int32_t i = 0; i < 24; ++i) batch.q_len.push_back(i * 7 % 5 + 1);
        }
        const Plan p = plan_on(thread_blocks, batch, spec_of(2 * group, 2));
        EXPECT_EQ(plan_problem(batch.view(), spec_of(2 * group, 2), p), "")
            << "group of " << group << ", drafts " << drafts << ", on " << thread_blocks;
        narrow += narrow_units(p);
        wide += p.header().units - narrow_units(p);
      }
    }
  }
  EXPECT_GT(narrow, 0);
  EXPECT_GT(wide, 0);
}

/// Who else is in the batch must not decide by which instructions a row is computed.
TEST(NarrowUnits, are_in_no_batch_invariant_plan) {
  for (const int32_t sequences : {1, 4, 5, 256}) {
    OwnedBatch batch = unshared(std::vector<int32_t>(sequences, 1024));
    const Plan p = plan_on(132, batch, spec_of(32, 8), {.batch_invariant = true});
    EXPECT_EQ(plan_problem(batch.view(), spec_of(32, 8), p), "");
    EXPECT_EQ(narrow_units(p), 0) << sequences;
  }
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

/// The starts of a plan after `spoil`, which must be refused.
void expect_refused(const Plan& p, const std::function<void(std::span<cuda::Start>)>& spoil) {
  std::vector<std::byte> bytes(p.bytes().begin(), p.bytes().end());
  auto* const starts = reinterpret_cast<cuda::Start*>(bytes.data() + p.header().schedule_offset +
                                                      cuda::ScheduleHeader::kStartsOffset);
  spoil({starts, static_cast<size_t>(p.header().workers)});
  EXPECT_THROW(Plan::from_bytes(bytes), Error);
}

bool has_units(const cuda::Start& start) { return start.unit_begin < start.unit_end; }

TEST(NarrowUnits, that_are_not_narrow_are_refused) {
  // 64 rows of one block, in one unit at each kv head.
  OwnedBatch wide = unshared(std::vector<int32_t>(16, 64));
  const Plan of_64_rows = plan_on(2, wide, spec_of(8, 2));
  EXPECT_NO_THROW(Plan::from_bytes(of_64_rows.bytes()));
  const auto claim = [](std::span<cuda::Start> starts) {
    const auto start = std::ranges::find_if(starts, has_units);
    ASSERT_NE(start, starts.end());
    ASSERT_EQ(start->narrow, 0);
    start->narrow = 1;
  };
  expect_refused(of_64_rows, claim);
  // Few rows, but 16 bits an element, another head_dim, or whole tiles.
  OwnedBatch few = unshared({1024, 1024});
  expect_refused(plan_on(2, few, spec_of(8, 2, DType::kBF16)), claim);
  AttentionSpec of_64 = spec_of(8, 2);
  of_64.head_dim = 64;
  expect_refused(plan_on(2, few, of_64), claim);
  expect_refused(plan_on(2, few, spec_of(8, 2), {.batch_invariant = true}), claim);
  // Narrow in another way than there is.
  const Plan narrow = plan_on(2, few, spec_of(8, 2));
  EXPECT_NO_THROW(Plan::from_bytes(narrow.bytes()));
  for (const int32_t what : {2, -1}) {
    expect_refused(narrow, [&](std::span<cuda::Start> starts) {
      ASSERT_EQ(starts[0].narrow, 1);
      starts[0].narrow = what;
    });
  }
}

/// A list in two parts: of few rows they are narrow and merged. Of 20 they are exchanged, and the
/// one of the second thread block, which writes none, is not narrow for that.
TEST(NarrowUnits, exchange_no_rows) {
  OwnedBatch batch = unshared({8192});
  const Plan few = plan_on(4, batch, spec_of(8, 2));
  EXPECT_EQ(plan_problem(batch.view(), spec_of(8, 2), few), "");
  EXPECT_EQ(narrow_units(few), 4);
  EXPECT_EQ(decode(few).merges.size(), 2u * 4);
  batch.q_len = {5};
  const Plan p = plan_on(4, batch, spec_of(8, 2));
  EXPECT_EQ(plan_problem(batch.view(), spec_of(8, 2), p), "");
  EXPECT_EQ(narrow_units(p), 0);
  EXPECT_EQ(decode(p).exchanges.size(), 2u * 20);
  expect_refused(p, [](std::span<cuda::Start> starts) {
    ASSERT_TRUE(starts[1].unit.is_narrow());
    starts[1].narrow = 1;
  });
}

}  // namespace
}  // namespace pando
