// The work list of the CUDA kernel, on the host: what the planner puts into a plan for it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>

#include "forest/batch_literal.h"
#include "pando/error.h"
#include "pando/plan.h"
#include "plan/coverage.h"
#include "plan/schedule_reader.h"
#include "support/message_of.h"

namespace pando {
namespace {

using testing::OwnedBatch;
using testing::plan_problem;

AttentionSpec spec_of(int32_t q_heads, int32_t kv_heads) {
  AttentionSpec spec;
  spec.q_heads = q_heads;
  spec.kv_heads = kv_heads;
  spec.head_dim = 128;
  return spec;
}

/// `sequences` sequences of `own_pages` pages each after `shared_pages` common ones.
OwnedBatch shared_prefix(int32_t sequences, int32_t shared_pages, int32_t own_pages) {
  std::vector<std::vector<int32_t>> pages(sequences);
  int32_t next = shared_pages;
  for (auto& row : pages) {
    for (int32_t p = 0; p < shared_pages; ++p) row.push_back(p);
    for (int32_t p = 0; p < own_pages; ++p) row.push_back(next++);
  }
  return OwnedBatch::of(std::move(pages), 16);
}

Plan h100_plan(OwnedBatch& batch, const AttentionSpec& spec, Sharing sharing = Sharing::kAll) {
  return plan(discover(batch.view()), spec, h100_profile(), {.sharing = sharing});
}

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

/// Whole lists begin with split tiles in every second eight thread blocks, others nowhere.
TEST(Schedule, neighbours_begin_with_the_same_tiles) {
  for (const bool whole : {true, false}) {
    OwnedBatch batch = whole ? shared_prefix(1024, 2048 / 16, 4) : shared_prefix(256, 512, 8);
    const Plan p = h100_plan(batch, spec_of(32, 8));
    const auto units = testing::ScheduleReader(p).decoded().units;
    const size_t lists = 8 * (whole ? 32 : 8);
    ASSERT_EQ(units.size(), whole ? lists : 2 * lists);
    for (const testing::ScheduledUnit& unit : units) {
      EXPECT_EQ(unit.split_first, whole && unit.thread_block / 8 % 2 == 1) << unit.thread_block;
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

TEST(Schedule, spoiled_bytes_are_refused) {
  OwnedBatch batch = shared_prefix(40, 16, 4);
  const Plan p = h100_plan(batch, spec_of(8, 2));
  ASSERT_GT(p.header().partial_rows, 0);
  const int64_t at = p.header().schedule_offset;
  const auto refused = [&](const std::function<void(std::byte*, cuda::ScheduleHeader&)>& spoil) {
    std::vector<std::byte> bytes(p.bytes().begin(), p.bytes().end());
    cuda::ScheduleHeader header;
    std::memcpy(&header, bytes.data() + at, sizeof(header));
    spoil(bytes.data() + at, header);
    std::memcpy(bytes.data() + at, &header, sizeof(header));
    EXPECT_THROW(Plan::from_bytes(bytes), Error);
  };
  using Header = cuda::ScheduleHeader;
  refused([](std::byte*, Header& h) { h.total_bytes += 64; });
  refused([](std::byte*, Header& h) { h.units_offset = -64; });
  refused([](std::byte*, Header& h) { h.runs = 1 << 30; });
  refused([](std::byte*, Header& h) { h.partial_rows -= 1; });
  refused([](std::byte*, Header& h) { h.packed_rows += 1; });
  refused([](std::byte*, Header& h) { h.thread_blocks = 131; });
  const auto unit = [](std::byte* schedule, const Header& h) {
    return reinterpret_cast<cuda::Unit*>(schedule + h.units_offset);
  };
  refused([&](std::byte* s, Header& h) { unit(s, h)->block = 1 << 20; });
  refused([&](std::byte* s, Header& h) { unit(s, h)->kv_head = 2; });
  // 40 sequences x 4 are 160 rows: the last block has 32.
  refused([&](std::byte* s, Header& h) {
    cuda::Unit* last = unit(s, h) + h.units - 1;
    while (last->block != 2) --last;
    last->ending[0] = {-1, 33 << 8, 33 << 8, 0};
  });
  refused([&](std::byte* s, Header& h) { unit(s, h)->split_end[0] = h.halves + 1; });
  refused([&](std::byte* s, Header& h) {
    unit(s, h)->ending[0] = {h.partial_rows, 64 << 8, 0, 0};
  });
  refused([](std::byte* s, Header& h) {
    reinterpret_cast<cuda::Half*>(s + h.halves_offset)->run_begin = h.runs;
  });
  refused([](std::byte* s, Header& h) {
    reinterpret_cast<cuda::Source*>(s + h.sources_offset)->ticket += 1;
  });
  refused([](std::byte* s, Header&) {
    reinterpret_cast<cuda::Start*>(s + Header::kStartsOffset)->tile_count += 1;
  });
  refused([](std::byte* s, Header& h) {
    reinterpret_cast<cuda::Run*>(s + h.runs_offset)->page_offset = 1 << 20;
  });
  refused([](std::byte* s, Header& h) {
    reinterpret_cast<cuda::Start*>(s + Header::kStartsOffset)->unit_end = h.units + 1;
  });
  refused([](std::byte* s, Header& h) {
    reinterpret_cast<cuda::Merge*>(s + h.merges_offset)->source_begin = h.sources;
  });
  refused([](std::byte* s, Header& h) {
    reinterpret_cast<cuda::Row*>(s + h.rows_offset)->q_row = h.rows;
  });
  // Halves and runs that are not where each other say.
  const auto half = [](std::byte* schedule, const Header& h) {
    return reinterpret_cast<cuda::Half*>(schedule + h.halves_offset);
  };
  refused([&](std::byte* s, Header& h) { half(s, h)->slot_begin += 64; });
  refused([&](std::byte* s, Header& h) { half(s, h)->slot_begin = 0x7fffffc0; });
  refused([](std::byte* s, Header& h) {
    reinterpret_cast<cuda::Run*>(s + h.runs_offset)->slot_begin += 1;
  });
}

/// Whether all that a thread block loads by its start lies in the page table and in q.
bool starts_are_followed_safely(const Plan& plan) {
  const PlanHeader& h = plan.header();
  const auto header = *reinterpret_cast<const cuda::ScheduleHeader*>(plan.schedule().data());
  const auto* const starts = reinterpret_cast<const cuda::Start*>(
      plan.schedule().data() + cuda::ScheduleHeader::kStartsOffset);
  const auto pages = cuda::PageShape::of(h.page_tokens);
  for (const cuda::Start& start : std::span(starts, header.thread_blocks)) {
    if (start.tile_count == 0) continue;
    const int32_t last_row = (start.unit.block + start.unit.blocks) * 64 / plan.group() - 1;
    const int32_t rows = std::min(last_row, h.rows - 1) - start.unit.block * 64 / plan.group();
    if (start.q_row < -1 || (start.q_row >= 0 && start.q_row + rows >= h.rows)) return false;
    for (const cuda::TileInfo& tile : start.tiles) {
      if (tile.kv_head < 0 || tile.kv_head >= h.kv_heads) return false;
      for (int32_t i = 0; i < cuda::kGranules; ++i) {
        const cuda::Granule granule{tile.position[i], tile.page[i], tile.rows[i]};
        const int64_t count = (granule.tokens(pages) + h.page_tokens - 1) / h.page_tokens;
        if (count > 0 && (tile.page[i] < 0 || tile.page[i] + count > h.page_table_len)) {
          return false;
        }
      }
    }
  }
  return true;
}

TEST(Schedule, any_spoiled_word_is_refused_or_harmless) {
  OwnedBatch batch = shared_prefix(20, 3, 2);
  batch.kv_len[7] -= 5;
  DeviceProfile small_card = h100_profile();  // each thread block has hundreds of words
  small_card.workers = 6;
  const PlanOptions free{.sharing = Sharing::kAll};
  const PlanOptions invariant{.sharing = Sharing::kAll, .batch_invariant = true};
  for (const auto& [profile, options] :
       {std::pair{small_card, free}, {small_card, invariant}, {cpu_profile(2), free}}) {
    const Plan p = plan(discover(batch.view()), spec_of(8, 2), profile, options);
    std::vector<std::byte> bytes(p.bytes().begin(), p.bytes().end());
    for (size_t at = 0; at + 4 <= bytes.size(); at += 4) {
      int32_t good;
      std::memcpy(&good, &bytes[at], 4);
      for (const int32_t bad : {good + 1, good - 1, good ^ (1 << 24), 0x7fffffff, -0x7fffffff - 1,
                                0x40000000, 0x3fffffc0, 2}) {
        std::memcpy(&bytes[at], &bad, 4);
        try {
          const Plan moved = Plan::from_bytes(bytes);
          const bool on_cuda = moved.header().backend == Backend::kCuda;
          ASSERT_TRUE(!on_cuda || starts_are_followed_safely(moved)) << at << ": " << bad;
          ASSERT_FALSE(explain(moved).empty());
          ASSERT_FALSE(to_json(moved, true).empty());
        } catch (const Error& error) {
          ASSERT_EQ(error.code, ErrorCode::kInvalidArgument);
        }
      }
      std::memcpy(&bytes[at], &good, 4);
    }
  }
}

TEST(Schedule, spoiled_starts_are_refused) {
  OwnedBatch batch = shared_prefix(40, 16, 4);
  for (const int32_t page_tokens : {16, 4}) {
    batch.page_tokens = page_tokens;
    batch.kv_len.assign(40, 20 * page_tokens);
    const Plan p = h100_plan(batch, spec_of(8, 2));
    const int64_t at = p.header().schedule_offset;
    using Header = cuda::ScheduleHeader;
    // All that a thread block reads of its start, by itself.
    const auto refused = [&](const char* what, const std::function<void(cuda::Start&)>& spoil) {
      std::vector<std::byte> bytes(p.bytes().begin(), p.bytes().end());
      auto* const starts =
          reinterpret_cast<cuda::Start*>(bytes.data() + at + Header::kStartsOffset);
      ASSERT_GT(starts->unit_end, starts->unit_begin);
      spoil(*starts);
      EXPECT_THROW(Plan::from_bytes(bytes), Error) << what << ", pages of " << page_tokens;
    };
    refused("page", [](cuda::Start& s) { s.tiles[0].page[0] = 1 << 20; });
    refused("negative page", [](cuda::Start& s) { s.tiles[0].page[3] = -1; });
    refused("kv_head", [](cuda::Start& s) { s.tiles[0].kv_head = 2; });
    refused("tokens", [](cuda::Start& s) { s.tiles[0].tokens += 8; });
    refused("position", [](cuda::Start& s) { s.tiles[0].position[1] += 8; });
    refused("boxes", [](cuda::Start& s) { s.tiles[0].rows[0] ^= cuda::Granule::kBig | 15 << 16; });
    refused("state", [](cuda::Start& s) { s.tiles[0].state[2] ^= 1; });
    refused("second tile", [](cuda::Start& s) { s.tiles[1].page[0] += 1; });
    refused("q_row", [](cuda::Start& s) { s.q_row = 39; });
    refused("q_row", [](cuda::Start& s) { s.q_row = -2; });
    refused("merge_team_shift", [](cuda::Start& s) { s.merge_team_shift += 1; });
    refused("merge_rows", [](cuda::Start& s) { s.merge_rows += 1; });
    refused("packed_rows", [](cuda::Start& s) { s.packed_rows += 64; });
    refused("partial_rows", [](cuda::Start& s) { s.partial_rows += 1; });
    refused("units_at", [](cuda::Start& s) { s.units_at += 4; });
    refused("merge_rows_at", [](cuda::Start& s) { s.merge_rows_at -= 4; });
    refused("unit", [](cuda::Start& s) { s.unit.whole_end += 1; });
    refused("exchanged", [](cuda::Start& s) { s.exchanged ^= 1; });
    refused("thread_block", [](cuda::Start& s) { s.thread_block = 1; });
  }
}

/// Each of the two waits for the other's rows: what only one of them expects would never come.
TEST(Schedule, exchanges_that_only_one_side_makes_are_refused) {
  OwnedBatch batch = shared_prefix(256, 512, 8);
  const Plan p = h100_plan(batch, spec_of(32, 8));
  const auto refused =
      [&](const char* what,
          const std::function<void(std::span<cuda::Start>, std::span<cuda::Unit>)>& spoil) {
        std::vector<std::byte> bytes(p.bytes().begin(), p.bytes().end());
        std::byte* const schedule = bytes.data() + p.header().schedule_offset;
        cuda::ScheduleHeader header;
        std::memcpy(&header, schedule, sizeof(header));
        const std::span units(reinterpret_cast<cuda::Unit*>(schedule + header.units_offset),
                              static_cast<size_t>(header.units));
        const std::span starts(
            reinterpret_cast<cuda::Start*>(schedule + cuda::ScheduleHeader::kStartsOffset),
            static_cast<size_t>(header.thread_blocks));
        ASSERT_EQ(starts[0].exchanged, 3);
        ASSERT_EQ(starts[1].exchanged, 3);
        spoil(starts, units);
        for (cuda::Start& start : starts) {
          if (start.unit_begin < start.unit_end) start.unit = units[start.unit_begin];
        }
        EXPECT_THROW(Plan::from_bytes(bytes), Error) << what;
      };
  using Starts = std::span<cuda::Start>;
  using Units = std::span<cuda::Unit>;
  refused("one side", [](Starts s, Units) { s[1].exchanged = 0; });
  refused("one block", [](Starts s, Units) { s[0].exchanged = 1; });
  refused("a third block", [](Starts s, Units) { s[0].exchanged = s[1].exchanged = 7; });
  refused("negative", [](Starts s, Units) { s[0].exchanged = s[1].exchanged = -1; });
  refused("another block", [](Starts, Units u) { u[1].block += 2; });
  refused("another kv_head", [](Starts s, Units u) { s[1].tiles[0].kv_head = u[1].kv_head ^= 1; });
  refused("the other's rows", [](Starts, Units u) {
    u[0].ending[1].touched = u[0].ending[1].direct = u[1].ending[1].direct;
  });
}

/// Of all starts, the header and, where it is the first, the copy of a unit.
TEST(Schedule, spoils_that_agree_with_each_other_are_refused) {
  OwnedBatch batch = shared_prefix(40, 16, 4);
  const Plan p = h100_plan(batch, spec_of(8, 2));
  const int64_t at = p.header().schedule_offset;
  using Header = cuda::ScheduleHeader;
  const auto refused =
      [&](const char* what,
          const std::function<void(Header&, std::span<cuda::Start>, std::span<cuda::Unit>)>&
              spoil) {
        std::vector<std::byte> bytes(p.bytes().begin(), p.bytes().end());
        std::byte* const schedule = bytes.data() + at;
        auto& header = *reinterpret_cast<Header*>(schedule);
        const std::span units(reinterpret_cast<cuda::Unit*>(schedule + header.units_offset),
                              static_cast<size_t>(header.units));
        const std::span starts(reinterpret_cast<cuda::Start*>(schedule + Header::kStartsOffset),
                               static_cast<size_t>(header.thread_blocks));
        spoil(header, starts, units);
        for (cuda::Start& start : starts) {
          if (start.unit_begin < start.unit_end) start.unit = units[start.unit_begin];
        }
        EXPECT_THROW(Plan::from_bytes(bytes), Error) << what;
      };
  for (const int32_t shift : {4, 31, -1}) {
    refused("merge_team_shift", [&](Header& h, auto starts, auto) {
      ASSERT_GE(h.merge_team_shift, 0);
      h.merge_team_shift = shift;
      for (cuda::Start& start : starts) start.merge_team_shift = shift;
    });
  }
  refused("more tiles than halves", [](Header&, auto starts, auto units) {
    units[0].whole_tiles += 1;
    starts[0].tile_count += 1;
  });
  refused("more split tiles than halves", [](Header&, auto starts, auto units) {
    units[0].split_tiles += 1;
    starts[0].tile_count += 1;
  });
  // Merges would wait for a second warpgroup that does not write.
  refused("the end of a block that is not there", [](Header&, auto, auto units) {
    const auto alone = std::ranges::find(units, 1, &cuda::Unit::blocks);
    ASSERT_NE(alone, units.end());
    alone->ending[1].partial = 0;
  });
}

}  // namespace
}  // namespace pando
