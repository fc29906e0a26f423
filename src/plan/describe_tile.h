// The first tile of a thread block, which its schedule describes; the kernel's scout describes the
// others, by Granule::describe and TileInfo::state_of as well.
#pragma once

#include <cstdint>
#include <span>

#include "plan/tile_format.h"

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

}  // namespace pando::cuda
