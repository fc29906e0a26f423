#include "plan/work_list.h"

#include <algorithm>
#include <array>
#include <bit>

namespace pando {
namespace {

/// Steps of about an eighth of a power of two below the longest item: exponent and first three bits
/// of the mantissa. Items in one bucket keep their order.
constexpr uint64_t kBuckets = 64;

uint64_t bucket_of(double us, double longest_us) {
  constexpr int kShift = 52 - 3;
  const uint64_t below =
      (std::bit_cast<uint64_t>(longest_us) >> kShift) - (std::bit_cast<uint64_t>(us) >> kShift);
  return std::min(below, kBuckets - 1);
}

}  // namespace

void WorkList::build(std::span<const Run> runs, std::span<const Tile> tiles,
                     std::span<const int32_t> page_indptr, int32_t packed_rows) {
  list_items(runs, tiles, page_indptr);
  list_merges(tiles, packed_rows);
}

void WorkList::list_items(std::span<const Run> runs, std::span<const Tile> tiles,
                          std::span<const int32_t> page_indptr) {
  unsorted_.clear();
  item_us_.clear();
  double longest_us = 0;
  for (const Tile& tile : tiles) {
    for (int32_t split = 0; split < tile.splits; ++split) {
      const int32_t begin = tile.begin_of(split);
      const int32_t end = tile.end_of(split);
      unsorted_.push_back({.page_offset = page_indptr[runs[tile.run].sequence],
                           .token_begin = begin,
                           .token_end = end,
                           .packed_begin = tile.packed_begin,
                           .packed_end = tile.packed_end,
                           .partial = tile.partial < 0 ? -1 : tile.partial + split * tile.rows(),
                           .full = tile.all_begin <= begin && end <= tile.all_end});
      item_us_.push_back((end - begin) * tile.token_us);
      longest_us = std::max(longest_us, item_us_.back());
    }
  }
  // Longest first, by a counting sort: whoever is free takes the next, so the end is even.
  std::array<int32_t, kBuckets + 1> at{};
  for (const double us : item_us_) ++at[bucket_of(us, longest_us) + 1];
  for (uint64_t b = 0; b < kBuckets; ++b) at[b + 1] += at[b];
  items_.resize(unsorted_.size());
  for (size_t i = 0; i < unsorted_.size(); ++i) {
    items_[at[bucket_of(item_us_[i], longest_us)]++] = unsorted_[i];
  }
}

/// Sweeps the packed rows. Runs stand in preorder, so their first rows never decrease, and of the
/// runs that cover a row the ancestors come first: that is the order of their tokens.
void WorkList::list_merges(std::span<const Tile> tiles, int32_t packed_rows) {
  merges_.clear();
  sources_.clear();
  covering_.clear();
  const auto count = static_cast<int32_t>(tiles.size());
  int32_t next = 0;  // first tile of the next run
  for (int32_t row = 0; row < packed_rows;) {
    for (int32_t& t : covering_) {  // on to the run's next tile, or out
      if (tiles[t].packed_end > row) continue;
      t = t + 1 < count && tiles[t + 1].run == tiles[t].run ? t + 1 : -1;
    }
    std::erase(covering_, -1);
    while (next < count && tiles[next].packed_begin == row) {
      covering_.push_back(next);
      const int32_t run = tiles[next].run;
      while (next < count && tiles[next].run == run) ++next;
    }
    int32_t end = next < count ? tiles[next].packed_begin : packed_rows;
    for (const int32_t t : covering_) end = std::min(end, tiles[t].packed_end);

    const auto source_begin = static_cast<int32_t>(sources_.size());
    bool written_directly = false;
    for (const int32_t t : covering_) {
      const Tile& tile = tiles[t];
      written_directly |= tile.splits > 0 && tile.partial < 0;
      if (tile.partial < 0) continue;
      for (int32_t split = 0; split < tile.splits; ++split) {
        sources_.push_back(tile.partial + split * tile.rows() + row - tile.packed_begin);
      }
    }
    if (!written_directly) {
      merges_.push_back({row, end, source_begin, static_cast<int32_t>(sources_.size())});
    }
    row = end;
  }
}

}  // namespace pando
