// How units end: which rows go to out at once, which to partials, and who merges those.
#include <algorithm>
#include <bit>
#include <span>

#include "plan/block_rows.h"
#include "plan/schedule.h"

namespace pando::cuda {

/// What a unit has of a block's rows, once they have their place in the partials.
Source Scheduler::source_of(const Touch& t) const {
  const Ending& ending = units_[t.unit].ending[t.side];
  return {.partial = ending.partial,
          .rows = ending.touched,
          .writer = t.thread_block * 2 + t.side,
          .ticket = t.unit - unit_begin_[t.thread_block] + 1};
}

/// Of two units that touch a block, one that may wait for the other at its end: the last of its
/// thread block, for which nobody waits then.
const Scheduler::Touch* Scheduler::find_folder(std::span<const Touch> touches) const {
  if (touches.size() != 2) return nullptr;
  for (auto t = touches.rbegin(); t != touches.rend(); ++t) {
    if (t->unit + 1 == unit_begin_[t->thread_block + 1]) return &*t;
  }
  return nullptr;
}

/// Says where the rows of one block at one kv head go: those that one unit alone touches to out,
/// and those that two touch, by way of partials, to the one of them that folds them into its own;
/// the others to partials that are merged.
void Scheduler::end_block(const Problem& p, int32_t block, int32_t kv_head, int64_t& partial_rows) {
  const auto& touches = touches_[static_cast<size_t>(block) * p.kv_heads + kv_head];
  const Touch* const folder = find_folder(touches);
  uint64_t touched = 0, shared = 0;  // by one unit at least, by more than one
  for (const Touch& t : touches) {
    const uint64_t rows = rows_between(t.begin, t.end);
    shared |= touched & rows;
    touched |= rows;
  }
  const uint64_t alone = touched & ~shared;
  uint64_t wanted =
      rows_before(p.packed_rows() - block * kBlockRows) & ~(folder == nullptr ? alone : touched);
  Merge merge{.block = block,
              .kv_head = kv_head,
              .source_begin = static_cast<int32_t>(sources_.size()),
              .sources = 0,
              .rows = {},
              .reserved = {}};
  for (const Touch& t : touches) {
    Ending& ending = units_[t.unit].ending[t.side];
    if (&t == folder) {
      ending.direct = ending.touched;
      continue;
    }
    // Those that nobody else touches, as far as they are one stretch.
    const uint64_t mine = alone & rows_between(t.begin, t.end);
    const uint64_t direct = longest_stretch(mine);
    ending.direct = packed_range(direct);
    if (ending.direct == ending.touched) continue;
    wanted |= mine & ~direct;
    ending.partial = static_cast<int32_t>(partial_rows);
    partial_rows += t.end - t.begin;
    if (folder != nullptr) folds_[folder->thread_block][folder->side] = source_of(t);
    if (folder != nullptr && mine == direct) continue;  // nothing is left to be merged
    sources_.push_back(source_of(t));
    ++merge.sources;
  }
  if (wanted == 0) return;
  merge.rows[0] = static_cast<uint32_t>(wanted);
  merge.rows[1] = static_cast<uint32_t>(wanted >> 32);
  merges_.push_back(merge);
}

/// Lists the rows to be merged one by one, or none where they are merged by fours.
void Scheduler::list_merge_rows() {
  merge_rows_.clear();
  if (header_.merge_team_shift < 0) return;
  for (size_t i = 0; i < merges_.size(); ++i) {
    for (uint64_t left = merges_[i].wanted(); left != 0; left &= left - 1) {
      merge_rows_.push_back(static_cast<MergeRow>(i) << 8 |
                            static_cast<MergeRow>(std::countr_zero(left)));
    }
  }
}

/// How rows are merged: each as a job of its own for a team of 2^n warps, or, -1, four rows in a
/// job for one warp. What has the fewest turns is the fastest, where a turn is four sources of one
/// row.
int32_t Scheduler::find_merge_team(const Problem& p) const {
  constexpr int64_t kWarpsAThreadBlock = 8;  // that merge
  constexpr int64_t kOpen = 2;               // dependent reads before the first source
  const int64_t warps = p.thread_blocks * kWarpsAThreadBlock;
  constexpr uint64_t kFirstOfFour = 0x1111'1111'1111'1111;
  int64_t fours = 0, rows = 0, rows_sources = 0;
  for (const Merge& merge : merges_) {
    const uint64_t wanted = merge.wanted();
    const uint64_t pairs = wanted | wanted >> 1;
    fours += std::popcount((pairs | pairs >> 2) & kFirstOfFour);
    rows += std::popcount(wanted);
    rows_sources += std::popcount(wanted) * int64_t{merge.sources};
  }
  if (fours == 0) return 0;
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
