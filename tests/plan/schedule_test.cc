// The work list of the CUDA kernel, on the host: what the planner puts into a plan for it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <map>

#include "forest/batch_literal.h"
#include "pando/error.h"
#include "pando/plan.h"
#include "plan/coverage.h"
#include "plan/h100_plan.h"
#include "plan/schedule_reader.h"
#include "support/message_of.h"

namespace pando {
namespace {

using testing::h100_plan;
using testing::OwnedBatch;
using testing::plan_problem;
using testing::shared_prefix;
using testing::spec_of;

TEST(Schedule, plan_holds_it_instead_of_items) {
  OwnedBatch batch = shared_prefix(32, 128, 4);
  const Plan p = h100_plan(batch, spec_of(32, 8));
  EXPECT_EQ(plan_problem(batch.view(), spec_of(32, 8), p), "");
  EXPECT_TRUE(p.items().empty() && p.merges().empty() && p.sources().empty());
  EXPECT_EQ(p.rows().size(), 32u);
  EXPECT_GT(p.header().units, 0);
  EXPECT_EQ(p.header().workers, 132);
  EXPECT_EQ(p.header().scratch_bytes, 0);
  // 128 packed rows are one pair of blocks: the prefix is read once, and each suffix once.
  const int64_t token_bytes = 2 * 128 * 2 * 8;
  EXPECT_EQ(p.cost().kv_bytes, (2048 + 32 * 64) * token_bytes);
  EXPECT_GE(p.workspace_bytes(), p.header().partial_rows * 129 * 4);
}

TEST(Schedule, cpu_plans_have_none) {
  OwnedBatch batch = shared_prefix(4, 4, 4);
  const Plan p = plan(discover(batch.view()), spec_of(8, 2), cpu_profile(2));
  EXPECT_TRUE(p.schedule().empty());
  EXPECT_EQ(p.header().units, 0);
}

TEST(Schedule, rows_without_kv_are_merges_of_nothing) {
  OwnedBatch batch = OwnedBatch::of({{}, {}, {}}, 16);
  const Plan p = h100_plan(batch, spec_of(8, 2));
  EXPECT_EQ(plan_problem(batch.view(), spec_of(8, 2), p), "");
  EXPECT_EQ(p.header().units, 0);
  const auto decoded = testing::ScheduleReader(p).decoded();
  EXPECT_EQ(decoded.merges.size(), 3u * 4 * 2);
  EXPECT_EQ(p.workspace_bytes(), 0);
}

TEST(Schedule, empty_batch_has_no_work) {
  OwnedBatch batch;
  const Plan p = h100_plan(batch, spec_of(8, 2));
  EXPECT_EQ(p.header().units, 0);
  EXPECT_EQ(plan_problem(batch.view(), spec_of(8, 2), p), "");
}

TEST(Schedule, window_reads_what_is_seen) {
  OwnedBatch batch = shared_prefix(2, 0, 64);
  AttentionSpec spec = spec_of(8, 2);
  spec.window = 100;
  const Plan p = h100_plan(batch, spec);
  EXPECT_EQ(plan_problem(batch.view(), spec, p), "");
  EXPECT_EQ(p.cost().kv_bytes, 2 * 100 * 2 * 128 * 2 * 2);
}

/// Only where a row's draft ends is there something to be masked.
TEST(Schedule, tokens_that_all_rows_of_a_sequence_see_need_no_mask) {
  OwnedBatch batch = shared_prefix(4, 0, 128);
  batch.q_len = {4, 4, 4, 4};
  for (const bool batch_invariant : {false, true}) {
    const Plan p = plan(discover(batch.view()), spec_of(8, 2), h100_profile(),
                        {.batch_invariant = batch_invariant});
    int64_t masked = 0, all = 0;
    const testing::DecodedSchedule decoded = testing::ScheduleReader(p).decoded();
    for (const testing::ScheduledRead& read : decoded.reads) {
      all += read.token_end - read.token_begin;
      if (!read.unmasked) masked += read.token_end - read.token_begin;
    }
    EXPECT_EQ(all, 4 * 2 * 2048);
    EXPECT_LE(masked, 4 * 2 * 128);
    EXPECT_GT(masked, 0);
  }
}

/// Short runs lie side by side in a tile, where no box of them is whole anyhow.
TEST(Schedule, short_runs_leave_no_slots_between_them) {
  std::vector<std::vector<int32_t>> pages(16);
  for (int32_t i = 0; i < 16; ++i) pages[i] = {i};
  OwnedBatch batch = OwnedBatch::of(std::move(pages), 64);
  for (int32_t& tokens : batch.kv_len) tokens = 32;
  const Plan p = h100_plan(batch, spec_of(8, 2));
  EXPECT_EQ(plan_problem(batch.view(), spec_of(8, 2), p), "");
  cuda::ScheduleHeader header;
  std::memcpy(&header, p.schedule().data(), sizeof(header));
  EXPECT_EQ(header.halves, 16 * 32 / cuda::kHalfTokens);
}

/// Thread blocks that read the same part of a prefix which L2 can't hold run side by side.
TEST(Schedule, lists_on_a_long_prefix_are_cut_alike) {
  OwnedBatch batch = shared_prefix(64, 65536 / 16, 16);
  const Plan p = h100_plan(batch, spec_of(32, 8));
  EXPECT_EQ(p.header().units, 8 * 2 * 8);
  DeviceProfile h200 = h100_profile();
  h200.dram_bytes_per_us = 4.3e6;
  batch = shared_prefix(64, 8192 / 16, 16);  // predicted times nearly tie
  EXPECT_EQ(plan(discover(batch.view()), spec_of(32, 8), h200).header().units, 8 * 2 * 8);
}

/// A prefix, and then `few` own pages of each of 16 sequences and `many` of each of 16 others: two
/// blocks of rows at four query heads to a kv head.
OwnedBatch uneven_blocks(int32_t prefix, int32_t few, int32_t many) {
  OwnedBatch batch = shared_prefix(32, prefix, many);
  for (int32_t i = 0; i < 16; ++i) batch.kv_len[i] -= (many - few) * 16;
  return batch;
}

/// A tile with tokens for one block of a pair alone would take nearly as long as one with twice as
/// many.
TEST(Schedule, what_one_block_of_a_pair_has_beyond_the_other_fills_tiles) {
  for (const int32_t few : {0, 1, 24, 255}) {
    OwnedBatch batch = uneven_blocks(4096, few, 256);
    const Plan p = h100_plan(batch, spec_of(32, 8));
    ASSERT_EQ(plan_problem(batch.view(), spec_of(32, 8), p), "") << few;
    const testing::DecodedSchedule s = testing::ScheduleReader(p).decoded();
    int64_t tiles = 0, of_pairs = 0, alone = 0;
    for (const testing::ScheduledUnit& unit : s.units) {
      tiles += unit.tiles;
      ++(unit.blocks == 2 ? of_pairs : alone);
    }
    EXPECT_GT(of_pairs, 0) << few;
    EXPECT_EQ(alone > 0, few < 255) << few;  // so little beyond is not worth a list
    const int64_t tokens = 16 * (4096 + 16 * few + 16 * 256);
    EXPECT_LE(tiles, 8 * (tokens / 128 + 16 * 6)) << few;
  }
}

/// What falls to the last thread block when shares end between tiles must not add up.
TEST(Schedule, shares_of_uneven_lengths_are_equal) {
  OwnedBatch batch = shared_prefix(64, 0, 1000);
  for (int32_t i = 0; i < 64; ++i) batch.kv_len[i] -= i * i % 61 * 200 + i;
  const Plan p = h100_plan(batch, spec_of(32, 8));
  EXPECT_EQ(plan_problem(batch.view(), spec_of(32, 8), p), "");
  std::vector<int32_t> tiles(p.header().workers);
  const testing::DecodedSchedule s = testing::ScheduleReader(p).decoded();
  for (const testing::ScheduledUnit& unit : s.units) tiles[unit.thread_block] += unit.tiles;
  const auto [least, most] = std::ranges::minmax(tiles);
  EXPECT_LE(most - least, 4) << least << " to " << most;
}

/// Reading a short prefix again takes no memory's time, since L2 holds it: 64 sequences that share
/// 128 tokens of 384 took 27 us without sharing on an H200, and 32 with it.
TEST(Schedule, a_prefix_that_l2_holds_is_shared_where_that_spares_more_than_its_merges) {
  DeviceProfile h200 = h100_profile();
  h200.dram_bytes_per_us = 4.3e6;
  for (const int32_t prefix : {128, 512}) {
    OwnedBatch batch = shared_prefix(64, prefix / 16, 256 / 16);
    const Plan p = plan(discover(batch.view()), spec_of(32, 8), h200);
    EXPECT_EQ(plan_problem(batch.view(), spec_of(32, 8), p), "") << prefix;
    EXPECT_EQ(p.decisions()[0].reason, prefix > 128 ? Reason::kShared : Reason::kPlanSlower)
        << prefix;
  }
}

/// A merge of four partials a row takes longer than two tiles.
TEST(Schedule, a_cut_that_spares_less_than_its_merge_costs_is_not_made) {
  OwnedBatch batch = shared_prefix(64, 1024 / 16, 0);
  const Plan p = h100_plan(batch, spec_of(32, 32));
  EXPECT_EQ(p.header().units, 64);
  EXPECT_EQ(p.header().partial_rows, 0);
}

/// An exchange takes a quarter of what a merge does.
TEST(Schedule, a_cut_in_two_that_spares_more_than_an_exchange_costs_is_made) {
  OwnedBatch batch = shared_prefix(64, 1024 / 16, 0);
  const Plan p = h100_plan(batch, spec_of(64, 64));
  EXPECT_EQ(p.header().units, 128);
  EXPECT_EQ(p.header().partial_rows, 0);
}

/// A tile takes twice as long at a head_dim of 256, a merge does not.
TEST(Schedule, a_head_dim_of_256_is_cut_sooner) {
  OwnedBatch batch = shared_prefix(64, 768 / 16, 0);
  AttentionSpec spec = spec_of(16, 16);
  EXPECT_EQ(h100_plan(batch, spec).header().units, 2 * 16);
  spec.head_dim = 256;
  EXPECT_EQ(h100_plan(batch, spec).header().units, 6 * 16);
}

/// How many sequences a unit of a batch-invariant plan holds is free. Here each has four tiles in
/// each of four cuts, and a pair of blocks 32 sequences. Of 64 sequences units of 32 tiles make
/// 256, two for nearly every thread block; of 40 they would make 160, but units of 8 tiles make
/// 640, five for nearly every one.
TEST(Schedule, batch_invariant_units_are_as_long_as_come_out_evenly) {
  const auto units = [](int32_t sequences) {
    OwnedBatch batch = shared_prefix(sequences, 0, 2048 / 16);
    return plan(discover(batch.view()), spec_of(32, 8), h100_profile(), {.batch_invariant = true})
        .header()
        .units;
  };
  EXPECT_EQ(units(64), 8 * 4 * (64 / 8));
  EXPECT_EQ(units(40), 8 * 4 * (40 / 2));
}

/// 16 sequences of equal length in 16 parts: each thread block has all of one, and none of another.
TEST(Schedule, units_touch_only_rows_that_they_read) {
  OwnedBatch batch = shared_prefix(16, 0, 8192 / 16);
  const Plan p = h100_plan(batch, spec_of(32, 8));
  EXPECT_EQ(plan_problem(batch.view(), spec_of(32, 8), p), "");
  EXPECT_EQ(p.header().units, 8 * 16);
  EXPECT_EQ(p.header().partial_rows, 0);
}

/// 64 lists over pairs of blocks, in two parts each.
TEST(Schedule, lists_in_two_parts_exchange_their_rows) {
  OwnedBatch batch = shared_prefix(256, 512, 8);
  const Plan p = h100_plan(batch, spec_of(32, 8));
  EXPECT_EQ(plan_problem(batch.view(), spec_of(32, 8), p), "");
  const testing::DecodedSchedule decoded = testing::ScheduleReader(p).decoded();
  EXPECT_TRUE(decoded.merges.empty());
  EXPECT_EQ(p.header().partial_rows, 0);
  EXPECT_EQ(decoded.exchanges.size(), 256u * 32);
  std::vector<int> gets(decoded.units.size());
  for (const testing::ScheduledExchange& each : decoded.exchanges) {
    EXPECT_EQ(decoded.units[each.from].thread_block ^ 1, decoded.units[each.to].thread_block);
    ++gets[each.to];
  }
  for (const int rows : gets) EXPECT_EQ(rows, 2 * cuda::kClusterRows);
}

/// Three lists for two thread blocks: the one that is cut ends the first and begins the second,
/// whose other list is still to come.
TEST(Schedule, units_that_others_follow_exchange_nothing) {
  OwnedBatch batch = shared_prefix(96, 512, 8);
  DeviceProfile two = h100_profile();
  two.workers = 2;
  const Plan p = plan(discover(batch.view()), spec_of(4, 1), two, {.sharing = Sharing::kAll});
  EXPECT_EQ(plan_problem(batch.view(), spec_of(4, 1), p), "");
  const testing::DecodedSchedule decoded = testing::ScheduleReader(p).decoded();
  ASSERT_EQ(decoded.units.size(), 4u);
  EXPECT_TRUE(decoded.exchanges.empty());
  EXPECT_EQ(decoded.merges.size(), 128u);
}

/// Of an odd number of thread blocks none has another in its cluster.
TEST(Schedule, an_odd_number_of_thread_blocks_exchanges_nothing) {
  OwnedBatch batch = shared_prefix(256, 512, 8);
  for (const int32_t workers : {131, 132}) {
    DeviceProfile profile = h100_profile();
    profile.workers = workers;
    const Plan p = plan(discover(batch.view()), spec_of(32, 8), profile);
    EXPECT_EQ(plan_problem(batch.view(), spec_of(32, 8), p), "");
    EXPECT_EQ(testing::ScheduleReader(p).decoded().exchanges.empty(), workers == 131);
  }
}

/// Whole lists begin with split tiles in every second eight thread blocks, and the next list of a
/// thread block the other way round; others nowhere.
TEST(Schedule, neighbours_begin_with_the_same_tiles) {
  for (const bool whole : {true, false}) {
    OwnedBatch batch = whole ? shared_prefix(1024, 2048 / 16, 4) : shared_prefix(256, 512, 8);
    const Plan p = h100_plan(batch, spec_of(32, 8));
    const auto units = testing::ScheduleReader(p).decoded().units;
    const size_t lists = 8 * (whole ? 32 : 8);
    ASSERT_EQ(units.size(), whole ? lists : 2 * lists);
    std::map<int32_t, int> before;  // units of a thread block
    for (const testing::ScheduledUnit& unit : units) {
      const int nth = before[unit.thread_block]++;
      EXPECT_EQ(unit.split_first, whole && (unit.thread_block / 8 + nth) % 2 == 1)
          << unit.thread_block << ", unit " << nth;
    }
  }
}

TEST(Schedule, positions_past_2_30_are_refused) {
  constexpr int32_t kPages = (1 << 22) + 1;
  OwnedBatch batch = OwnedBatch::of({std::vector<int32_t>(kPages)}, 256);
  for (int32_t p = 0; p < kPages; ++p) batch.pages[0][p] = p;
  AttentionSpec spec = spec_of(8, 2);
  spec.window = 100;
  EXPECT_EQ(testing::message_of(ErrorCode::kUnsupported, [&] { h100_plan(batch, spec); }),
            "kv_len[0]: got 1073742080 or more, the CUDA backend supports 1073741824");
  batch.kv_len[0] = 1 << 30;
  EXPECT_NO_THROW(Plan::from_bytes(h100_plan(batch, spec).bytes()));
}

TEST(Schedule, every_ratio_of_heads_is_covered) {
  OwnedBatch batch = shared_prefix(5, 9, 3);
  batch.kv_len[2] -= 7;
  batch.q_len = {1, 3, 2, 1, 70};
  for (int32_t group = 1; group <= 128; ++group) {
    const Plan p = h100_plan(batch, spec_of(2 * group, 2));
    EXPECT_EQ(plan_problem(batch.view(), spec_of(2 * group, 2), p), "") << group;
  }
}

TEST(Schedule, many_sequences_are_covered) {
  for (const int32_t sequences : {65535, 65536, 80000}) {
    OwnedBatch batch = shared_prefix(sequences, 0, 1);
    const Plan p = h100_plan(batch, spec_of(1, 1));
    EXPECT_EQ(plan_problem(batch.view(), spec_of(1, 1), p), "");
  }
}

TEST(Schedule, explain_speaks_of_units) {
  OwnedBatch batch = shared_prefix(32, 128, 4);
  const std::string text = explain(h100_plan(batch, spec_of(32, 8)));
  EXPECT_NE(text.find("units for 132 thread blocks"), std::string::npos) << text;
  EXPECT_EQ(text.find("work items"), std::string::npos) << text;
  EXPECT_EQ(text.find("scratch"), std::string::npos) << text;
}

TEST(Schedule, survives_a_move_of_its_bytes) {
  OwnedBatch batch = shared_prefix(8, 16, 4);
  for (const bool batch_invariant : {false, true}) {
    const Plan p = plan(discover(batch.view()), spec_of(8, 2), h100_profile(),
                        {.sharing = Sharing::kAll, .batch_invariant = batch_invariant});
    const Plan moved = Plan::from_bytes(p.bytes());
    EXPECT_TRUE(std::ranges::equal(moved.schedule(), p.schedule()));
    EXPECT_EQ(explain(moved), explain(p));
  }
}

}  // namespace
}  // namespace pando
