#include "plan/schedule_check.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <span>

#include "plan/describe_tile.h"
#include "plan/schedule_format.h"

namespace pando::cuda {
namespace {

/// The sections of a schedule in the bytes of a plan.
struct Sections {
  ScheduleHeader header;
  std::span<const Start> starts;
  std::span<const Unit> units;
  std::span<const Half> halves;
  std::span<const pando::cuda::Run> runs;
  std::span<const Row> rows;
  std::span<const Merge> merges;
  std::span<const Source> sources;
  std::span<const MergeRow> merge_rows;
  std::span<const TreeRow> tree_rows;

  std::span<const Unit> units_of(const Start& start) const {
    return units.subspan(start.unit_begin, start.unit_end - start.unit_begin);
  }
};

template <class Entry>
bool take(std::span<const std::byte> bytes, int64_t offset, int64_t count,
          std::span<const Entry>& section) {
  const auto size = static_cast<int64_t>(bytes.size());
  if (count < 0 || offset < 0 || offset % ScheduleHeader::kAlignment != 0 || offset > size ||
      count * static_cast<int64_t>(sizeof(Entry)) > size - offset) {
    return false;
  }
  section = {reinterpret_cast<const Entry*>(bytes.data() + offset), static_cast<size_t>(count)};
  return true;
}

bool take_all(std::span<const std::byte> bytes, Sections& s) {
  if (bytes.size() < sizeof(ScheduleHeader)) return false;
  std::memcpy(&s.header, bytes.data(), sizeof(s.header));
  const ScheduleHeader& h = s.header;
  return h.total_bytes == static_cast<int64_t>(bytes.size()) && h.thread_blocks >= 1 &&
         h.merges <= kMostMerges &&
         take(bytes, ScheduleHeader::kStartsOffset, h.thread_blocks, s.starts) &&
         take(bytes, h.units_offset, h.units, s.units) &&
         take(bytes, h.halves_offset, h.halves, s.halves) &&
         take(bytes, h.runs_offset, h.runs, s.runs) && take(bytes, h.rows_offset, h.rows, s.rows) &&
         take(bytes, h.merges_offset, h.merges, s.merges) &&
         take(bytes, h.sources_offset, h.sources, s.sources) &&
         take(bytes, h.merge_rows_offset, h.merge_rows, s.merge_rows) &&
         take(bytes, h.tree_rows_offset, h.tree_rows, s.tree_rows);
}

bool within(int64_t begin, int64_t end, int64_t limit) {
  return 0 <= begin && begin <= end && end <= limit;
}

/// A range of rows of a block, packed as begin | end << 8.
bool rows_are_sane(uint32_t rows) {
  return within(rows & 255, rows >> 8 & 255, kBlockRows) && rows >> 16 == 0;
}

/// Partial rows from `partial` on for the rows of a packed range.
bool partials_are_sane(int32_t partial, uint32_t rows, const ScheduleHeader& h) {
  const int64_t count = int64_t{rows >> 8 & 255} - (rows & 255);
  return within(partial, partial + count, h.partial_rows);
}

/// A unit has as many tiles as its halves fill.
bool tiles_are_sane(const Unit& unit, int32_t halves) {
  const auto tiles = [](int32_t begin, int32_t end, int32_t stride) {
    return (int64_t{end} - begin + stride - 1) / stride;
  };
  if (!within(unit.whole_begin, unit.whole_end, halves)) return false;
  int64_t split_tiles = 0;
  for (int32_t side = 0; side < 2; ++side) {
    if (!within(unit.split_begin[side], unit.split_end[side], halves)) return false;
    split_tiles = std::max(
        split_tiles, tiles(unit.split_begin[side], unit.split_end[side], unit.split_stride()));
  }
  return unit.whole_tiles == tiles(unit.whole_begin, unit.whole_end, 2) &&
         unit.split_tiles == split_tiles && unit.whole_tiles + split_tiles > 0;
}

bool unit_is_sane(const Unit& unit, const Sections& s, int64_t blocks, int32_t kv_heads) {
  // Of a pair the second block may be missing: it has no rows then.
  if ((unit.blocks != 1 && unit.blocks != 2) ||
      !within(unit.block, int64_t{unit.block} + 1, blocks) ||
      !within(unit.kv_head, int64_t{unit.kv_head} + 1, kv_heads) ||
      !tiles_are_sane(unit, s.header.halves)) {
    return false;
  }
  for (int32_t side = 0; side < 2; ++side) {
    const Ending& ending = unit.ending[side];
    // Of a single block the first warpgroup writes the rows; nobody would publish a second's.
    if (side >= unit.blocks && (ending.partial != -1 || (ending.touched | ending.direct) != 0)) {
      return false;
    }
    if (!rows_are_sane(ending.touched) || !rows_are_sane(ending.direct)) return false;
    const int64_t present =
        std::max<int64_t>(0, s.header.packed_rows - (unit.block + int64_t{side}) * kBlockRows);
    if (ending.touched >> 8 > present || ending.direct >> 8 > present) return false;
    if (ending.partial < 0 ? ending.direct != ending.touched && ending.touched != 0
                           : !partials_are_sane(ending.partial, ending.touched, s.header)) {
      return false;
    }
  }
  return true;
}

bool tokens_are_sane(const Sections& s, const PlanHeader& h) {
  for (const pando::cuda::Run& run : s.runs) {
    const int64_t last_page = run.page_offset + (int64_t{run.token_end} - 1) / h.page_tokens;
    if (!within(run.slot_begin, run.slot_begin, kMostSlots) || run.slot_begin % kGranule != 0 ||
        !within(run.token_begin, run.token_end, kMostPositions) ||
        run.token_begin == run.token_end || run.page_offset < 0 || last_page >= h.page_table_len) {
      return false;
    }
  }
  for (const Half& half : s.halves) {
    if (half.runs < 0 || half.runs > kHalfTokens / kGranule ||
        !within(half.run_begin, int64_t{half.run_begin} + half.runs, s.header.runs) ||
        !within(half.slot_begin, int64_t{half.slot_begin} + kHalfTokens, kMostSlots) ||
        half.slot_begin % kHalfTokens != 0) {
      return false;
    }
    for (const pando::cuda::Run& run : s.runs.subspan(half.run_begin, half.runs)) {
      const int64_t slot_end = int64_t{run.slot_begin} + run.token_end - run.token_begin;
      if (run.slot_begin >= half.slot_begin + kHalfTokens || slot_end <= half.slot_begin) {
        return false;
      }
    }
  }
  return true;
}

/// Somebody waits for the writer: its ticket must come.
bool source_is_sane(const Source& source, const Sections& s) {
  if (!rows_are_sane(source.rows) || !partials_are_sane(source.partial, source.rows, s.header) ||
      !within(source.writer, int64_t{source.writer} + 1, 2 * int64_t{s.header.thread_blocks})) {
    return false;
  }
  const Start& start = s.starts[source.writer / 2];
  if (source.ticket < 1 || source.ticket > start.unit_end - start.unit_begin) return false;
  const Unit& unit = s.units[start.unit_begin + source.ticket - 1];
  return unit.ending[source.writer % 2].partial == source.partial;
}

/// The thread blocks of a cluster wait for each other where they exchange rows: both must, at the
/// end of units of the same blocks, of whose rows each writes half.
bool exchange_is_sane(const Start& start, const Sections& s) {
  if (start.exchanged == 0) return true;
  if (!has_clusters(s.header.thread_blocks)) return false;
  const Start& other = s.starts[start.thread_block ^ 1];
  if (other.exchanged != start.exchanged || start.unit_begin == start.unit_end ||
      other.unit_begin == other.unit_end) {
    return false;
  }
  const Unit& unit = s.units[start.unit_end - 1];
  const Unit& theirs = s.units[other.unit_end - 1];
  if (unit.block != theirs.block || unit.blocks != theirs.blocks ||
      unit.kv_head != theirs.kv_head || start.exchanged >> unit.blocks != 0) {
    return false;
  }
  const uint32_t first = start.thread_block % 2 * kClusterRows;
  for (int32_t side = 0; side < unit.blocks; ++side) {
    if ((start.exchanged >> side & 1) == 0) continue;
    const Ending& ending = unit.ending[side];
    if (ending.partial >= 0) return false;
    if (ending.direct != 0 &&
        ((ending.direct & 255) < first || ending.direct >> 8 > first + kClusterRows)) {
      return false;
    }
  }
  return true;
}

/// Consumers of a narrow thread block take its units as narrow ones without a look at them.
bool narrow_is_sane(const Start& start, const Sections& s, const PlanHeader& h) {
  if (start.narrow == 0) return true;
  const auto units = s.units_of(start);
  return start.narrow == 1 && has_narrow_units(h.head_dim, h.kv_dtype == DType::kE4M3) &&
         std::ranges::all_of(units, &Unit::is_narrow) && start.exchanged == 0;
}

/// Consumers of a thread block with one tile take that without a look at its unit, and exchange
/// rows in a way of their own.
bool one_tile_is_sane(const Start& start, const Sections& s) {
  if (start.exchanged != 0 && s.starts[start.thread_block ^ 1].one_tile != start.one_tile) {
    return false;
  }
  return start.one_tile == 0 ||
         (start.one_tile == 1 && start.tree_rows_at == 0 && has_one_tile(s.units_of(start)));
}

/// Each thread block waits for writers in its merges.
bool merges_are_sane(const Sections& s, int64_t blocks, int32_t kv_heads) {
  for (const Merge& merge : s.merges) {
    if (!within(merge.block, int64_t{merge.block} + 1, blocks) ||
        !within(merge.kv_head, int64_t{merge.kv_head} + 1, kv_heads) || merge.sources < 0 ||
        !within(merge.source_begin, merge.source_begin + int64_t{merge.sources},
                s.header.sources)) {
      return false;
    }
  }
  for (const Source& source : s.sources) {
    if (!source_is_sane(source, s)) return false;
  }
  for (const MergeRow row : s.merge_rows) {
    if ((row & 255) >= kBlockRows || row >> 8 >= s.merges.size()) return false;
  }
  return true;
}

/// Loaders follow a start's tiles without a look at the runs that they describe.
bool first_tiles_are_sane(const Start& start, const Sections& s, int32_t page_tokens) {
  TileInfo tiles[Start::kTiles] = {};
  const auto units = s.units_of(start);
  describe_first_tiles(units, s.halves, s.runs, PageShape::of(page_tokens), tiles);
  return std::memcmp(tiles, start.tiles, sizeof(tiles)) == 0;
}

bool start_is_sane(const Start& start, const Sections& s, const Plan& plan) {
  const ScheduleHeader& h = s.header;
  const auto at = [](int32_t section, int64_t offset) { return section * int64_t{16} == offset; };
  if (start.thread_block != &start - s.starts.data() || start.merges != h.merges ||
      start.packed_rows != h.packed_rows || start.partial_rows != h.partial_rows ||
      start.merge_rows != h.merge_rows || (start.evict_first & ~1) != 0 ||
      start.merge_team_shift != h.merge_team_shift || h.merge_team_shift > kMostMergeTeamShift ||
      (h.merge_team_shift < 0) != (h.merge_rows == 0 && h.merges > 0) ||
      !at(start.units_at, h.units_offset) || !at(start.halves_at, h.halves_offset) ||
      !at(start.runs_at, h.runs_offset) || !at(start.rows_at, h.rows_offset) ||
      !at(start.merges_at, h.merges_offset) || !at(start.sources_at, h.sources_offset) ||
      !at(start.merge_rows_at, h.merge_rows_offset) ||
      !at(start.tree_rows_at, h.tree_rows_offset)) {
    return false;
  }
  int64_t tiles = 0;
  for (int32_t u = start.unit_begin; u < start.unit_end; ++u) {
    tiles += int64_t{s.units[u].whole_tiles} + s.units[u].split_tiles;
  }
  if (start.tile_count != tiles || !exchange_is_sane(start, s) ||
      !narrow_is_sane(start, s, plan.header()) || !one_tile_is_sane(start, s)) {
    return false;
  }
  if (tiles == 0) return true;
  return std::memcmp(&start.unit, &s.units[start.unit_begin], sizeof(Unit)) == 0 &&
         (start.q_row == -1 || start.q_row == first_q_row(start.unit, s.rows, plan.group())) &&
         first_tiles_are_sane(start, s, plan.header().page_tokens);
}

}  // namespace

bool schedule_is_sane(const Plan& plan) {
  const PlanHeader& h = plan.header();
  Sections s;
  if (!take_all(plan.schedule(), s)) return false;
  const int64_t packed_rows = int64_t{h.rows} * plan.group();
  const int64_t blocks = (packed_rows + kBlockRows - 1) / kBlockRows;
  if (s.header.packed_rows != packed_rows || s.header.rows != h.rows ||
      s.header.tree_rows != (h.tree_rows > 0 ? h.rows : 0) ||
      s.header.partial_rows != h.partial_rows || s.header.units != h.units ||
      s.header.thread_blocks != h.workers ||
      !std::has_single_bit(static_cast<uint32_t>(h.page_tokens))) {
    return false;
  }
  int32_t next = 0;
  for (const Start& start : s.starts) {
    if (start.unit_begin != next || !within(start.unit_begin, start.unit_end, h.units)) {
      return false;
    }
    next = start.unit_end;
  }
  if (next != h.units) return false;
  for (const Unit& unit : s.units) {
    if (!unit_is_sane(unit, s, blocks, h.kv_heads)) return false;
  }
  for (const Row& row : s.rows) {
    if (!within(row.q_row, int64_t{row.q_row} + 1, h.rows)) return false;
  }
  if (!tokens_are_sane(s, h)) return false;
  for (const Start& start : s.starts) {
    if (!start_is_sane(start, s, plan)) return false;
  }
  return merges_are_sane(s, blocks, h.kv_heads);
}

}  // namespace pando::cuda
