// The first tiles of a thread block, which its schedule describes; the kernel's scout describes the
// others, by Granule::describe and TileInfo::state_of as well. And where its query rows lie.
#pragma once

#include <cstdint>
#include <iterator>
#include <span>

#include "plan/schedule_format.h"

namespace pando::cuda {

/// Half `side` of a tile: 64 slots of a stream from `slot_begin` on, in which `runs` lie.
inline void describe_half(std::span<const Run> runs, int32_t slot_begin, int32_t side,
                          const PageShape& pages, TileInfo& tile) {
  size_t started = 0;  // runs that start at or before the slot
  for (int32_t i = 0; i < kHalfTokens / kGranule; ++i) {
    const int32_t slot = slot_begin + i * kGranule;
    while (started < runs.size() && runs[started].slot_begin <= slot) ++started;
    const Granule granule =
        Granule::describe(started > 0 ? runs[started - 1] : Run{}, started > 0, slot, i, pages);
    const int32_t at = side * (kHalfTokens / kGranule) + i;
    tile.position[at] = granule.position;
    tile.rows[at] = granule.rows;
    tile.page[at] = granule.page;
    tile.tokens += granule.tokens(pages);
  }
}

/// What follows from a tile's two halves.
inline void conclude(TileInfo& tile) {
  uint32_t full = 0, plain = 0, alike = 0, holes = 0;
  for (int32_t i = 0; i < kGranules; ++i) {
    const Granule granule{tile.position[i], tile.page[i], tile.rows[i]};
    const auto vote = [&](bool yes) { return static_cast<uint32_t>(yes) << i; };
    const auto same_rows = [&](int32_t as) {
      return granule.is(Run::kPlain) && (tile.rows[i] & 0xffff) == (tile.rows[as] & 0xffff);
    };
    full |= vote(granule.is(Run::kFull));
    plain |= vote(same_rows(i & ~7));
    alike |= vote(same_rows(0));
    holes |= vote(granule.has_hole());
  }
  tile.state[0] = TileInfo::state_of(0xff, full, plain, holes);
  tile.state[1] = TileInfo::state_of(0xff00, full, plain, holes);
  tile.state[2] = TileInfo::state_of(0xffff, full, alike, holes);
}

/// The `index`-th tile of a unit, in the order of TileOrder in the kernel.
inline void describe_tile(const Unit& unit, int32_t index, std::span<const Half> halves,
                          std::span<const Run> runs, const PageShape& pages, TileInfo& tile) {
  const bool split_first =
      unit.whole_tiles == 0 || (unit.split_first != 0 && unit.split_tiles != 0);
  const int32_t first_tiles = split_first ? unit.split_tiles : unit.whole_tiles;
  const bool split = split_first == (index < first_tiles);
  if (index >= first_tiles) index -= first_tiles;
  tile.kv_head = unit.kv_head;
  for (int32_t side = 0; side < 2; ++side) {
    const int32_t half = split ? unit.split_begin[side] + index * unit.split_stride()
                               : unit.whole_begin + side + index * 2;
    if (half >= (split ? unit.split_end[side] : unit.whole_end)) continue;
    const Half& from = halves[half];
    describe_half(runs.subspan(from.run_begin, from.runs), from.slot_begin, side, pages, tile);
  }
  conclude(tile);
}

/// The first tiles of a thread block with these units.
inline void describe_first_tiles(std::span<const Unit> units, std::span<const Half> halves,
                                 std::span<const Run> runs, const PageShape& pages,
                                 TileInfo (&tiles)[Start::kTiles]) {
  int32_t tile = 0;
  for (const Unit& unit : units) {
    for (int32_t i = 0; i < unit.whole_tiles + unit.split_tiles; ++i) {
      if (tile == Start::kTiles) return;
      describe_tile(unit, i, halves, runs, pages, tiles[tile++]);
    }
  }
}

/// Of the first of a unit's rows, when they follow each other in q; else -1. `rows` have a q_row
/// each.
template <class QueryRow>
int32_t first_q_row(const Unit& unit, std::span<const QueryRow> rows, int32_t group) {
  const int64_t first = int64_t{unit.block} * kBlockRows / group;
  const int64_t last = ((int64_t{unit.block} + unit.blocks) * kBlockRows - 1) / group;
  for (int64_t row = first; row <= last && row < std::ssize(rows); ++row) {
    if (rows[row].q_row != rows[first].q_row + row - first) return -1;
  }
  return rows[first].q_row;
}

}  // namespace pando::cuda
