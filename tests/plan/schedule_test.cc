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
}

}  // namespace
}  // namespace pando
