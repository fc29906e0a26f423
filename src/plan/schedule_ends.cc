// How units end: which rows go to out at once, which to partials, and who merges those.
#include <algorithm>
#include <array>
#include <bit>

#include "plan/schedule.h"

namespace pando::cuda {

/// Says where the rows of one block at one kv head go: those that one unit alone touches to out,
/// the others to partials that are merged.
void Scheduler::end_block(const Problem& p, int32_t block, int32_t kv_head, int64_t& partial_rows) {
  const auto& touches = touches_[static_cast<size_t>(block) * p.kv_heads + kv_head];
  std::array<uint8_t, kBlockRows> readers{};  // of each row: none, one, more
  for (const Touch& t : touches) {
    for (int32_t r = t.begin; r < t.end; ++r) readers[r] = readers[r] == 0 ? 1 : 2;
  }
  uint64_t wanted = 0;
  for (int32_t r = 0; r < std::min(kBlockRows, p.packed_rows() - block * kBlockRows); ++r) {
    if (readers[r] != 1) wanted |= uint64_t{1} << r;
  }
  Merge merge{.block = block,
              .kv_head = kv_head,
              .source_begin = static_cast<int32_t>(sources_.size()),
              .sources = 0,
              .rows = {},
              .reserved = {}};
  for (const Touch& t : touches) {
    // The longest stretch of rows that nobody else touches.
    int32_t begin = t.begin, end = t.begin;
    for (int32_t r = t.begin; r < t.end; ++r) {
      int32_t stop = r;
      while (stop < t.end && readers[stop] == 1) ++stop;
      if (stop - r > end - begin) {
        begin = r;
        end = stop;
      }
      r = std::max(r, stop);
    }
    Ending& ending = units_[t.unit].ending[t.side];
    ending.direct = begin | static_cast<uint32_t>(end) << 8;
    if (end - begin == t.end - t.begin) continue;
    for (int32_t r = t.begin; r < t.end; ++r) {
      if (readers[r] == 1 && (r < begin || r >= end)) wanted |= uint64_t{1} << r;
    }
    ending.partial = static_cast<int32_t>(partial_rows);
    partial_rows += t.end - t.begin;
    sources_.push_back({.partial = ending.partial,
                        .rows = ending.touched,
                        .writer = t.thread_block * 2 + t.side,
                        .ticket = t.unit - unit_begin_[t.thread_block] + 1});
    ++merge.sources;
  }
  if (wanted == 0) return;
  for (uint32_t r = 0; r < kBlockRows; ++r) {
    if ((wanted >> r & 1) != 0) {
      merge_rows_.push_back(static_cast<MergeRow>(merges_.size()) << 8 | r);
    }
  }
  merge.rows[0] = static_cast<uint32_t>(wanted);
  merge.rows[1] = static_cast<uint32_t>(wanted >> 32);
  merges_.push_back(merge);
}

/// How rows are merged: each as a job of its own for a team of 2^n warps, or, -1, four rows in a
/// job for one warp. What has the fewest turns is the fastest, where a turn is four sources of one
/// row.
int32_t Scheduler::find_merge_team(const Problem& p) const {
  constexpr int64_t kWarpsAThreadBlock = 8;  // that merge
  constexpr int64_t kOpen = 2;               // dependent reads before the first source
  const int64_t warps = p.thread_blocks * kWarpsAThreadBlock;
  int64_t fours = 0, rows_sources = 0;
  for (const Merge& merge : merges_) {
    const uint64_t wanted = merge.rows[0] | uint64_t{merge.rows[1]} << 32;
    for (int32_t four = 0; four < kBlockRows / 4; ++four) fours += (wanted >> four * 4 & 15) != 0;
    rows_sources += std::popcount(wanted) * int64_t{merge.sources};
  }
  if (fours == 0) return 0;
  const auto rows = static_cast<int64_t>(merge_rows_.size());
  const auto turns = [](int64_t count, int64_t at_once) { return (count + at_once - 1) / at_once; };
  const int64_t sources = turns(rows_sources, rows);
  int32_t best = -1;
  int64_t best_turns = turns(fours, warps) * (kOpen + 2 * turns(sources, 4));
  for (int32_t shift = 0; shift <= kMostMergeTeamShift; ++shift) {
    // Teams put their parts together, which takes as long as a turn.
    const int64_t parts = shift > 0 ? 1 : 0;
    const int64_t single =
        turns(rows, warps >> shift) * (kOpen + turns(turns(sources, 1 << shift), 4) + parts);
    if (single > best_turns || (single == best_turns && best >= 0)) continue;
    best = shift;
    best_turns = single;
  }
  return best;
}

}  // namespace pando::cuda
