// Plans from bytes whose schedule was changed: refused, or harmless.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <span>
#include <vector>

#include "pando/error.h"
#include "pando/plan.h"
#include "plan/h100_plan.h"
#include "plan/schedule_format.h"

namespace pando {
namespace {

using testing::h100_plan;
using testing::OwnedBatch;
using testing::shared_prefix;
using testing::spec_of;

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
  // Consumers of a thread block that has one tile look at nothing else.
  for (const int32_t what : {-1, 1, 2}) {
    refused([what](std::byte* s, Header&) {
      auto* const start = reinterpret_cast<cuda::Start*>(s + Header::kStartsOffset);
      ASSERT_EQ(start->one_tile, 0);
      start->one_tile = what;
    });
  }
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

using Header = cuda::ScheduleHeader;
using Starts = std::span<cuda::Start>;
using Units = std::span<cuda::Unit>;

/// A plan whose header, starts and units `spoil` changed, and the copies of first units with them.
void expect_refused(const Plan& p, const char* what,
                    const std::function<void(Header&, Starts, Units)>& spoil) {
  std::vector<std::byte> bytes(p.bytes().begin(), p.bytes().end());
  std::byte* const schedule = bytes.data() + p.header().schedule_offset;
  auto& header = *reinterpret_cast<Header*>(schedule);
  const Units units(reinterpret_cast<cuda::Unit*>(schedule + header.units_offset),
                    static_cast<size_t>(header.units));
  const Starts starts(reinterpret_cast<cuda::Start*>(schedule + Header::kStartsOffset),
                      static_cast<size_t>(header.thread_blocks));
  spoil(header, starts, units);
  for (cuda::Start& start : starts) {
    if (start.unit_begin < start.unit_end) start.unit = units[start.unit_begin];
  }
  EXPECT_THROW(Plan::from_bytes(bytes), Error) << what;
}

/// Each of the two waits for the other's rows: what only one of them expects would never come.
TEST(Schedule, exchanges_that_only_one_side_makes_are_refused) {
  OwnedBatch batch = shared_prefix(256, 512, 8);
  const Plan p = h100_plan(batch, spec_of(32, 8));
  const auto refused = [&](const char* what, const std::function<void(Starts, Units)>& spoil) {
    expect_refused(p, what, [&](Header&, Starts starts, Units units) {
      ASSERT_EQ(starts[0].exchanged, 3);
      ASSERT_EQ(starts[1].exchanged, 3);
      spoil(starts, units);
    });
  };
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

/// Consumers of one tile exchange rows in a way of their own: both sides must.
TEST(Schedule, exchanges_of_one_tile_with_more_are_refused) {
  OwnedBatch batch = shared_prefix(64, 16, 0);
  const Plan p = h100_plan(batch, spec_of(4, 4));
  for (const int side : {0, 1}) {
    expect_refused(p, "one tile on one side", [&](Header&, Starts starts, Units) {
      ASSERT_EQ(starts[side].exchanged, 1);
      ASSERT_EQ(starts[side].one_tile, 1);
      starts[side].one_tile = 0;
    });
  }
}

/// Of all starts, the header and, where it is the first, the copy of a unit.
TEST(Schedule, spoils_that_agree_with_each_other_are_refused) {
  OwnedBatch batch = shared_prefix(40, 16, 4);
  const Plan p = h100_plan(batch, spec_of(8, 2));
  const auto refused = [&](const char* what, const auto& spoil) { expect_refused(p, what, spoil); };
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
