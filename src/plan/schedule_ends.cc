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

/// Whether all that touch a block are the last units of the thread blocks of one cluster, with the
/// same blocks: see Start::exchanged. Narrow units stay narrow.
bool Scheduler::is_in_cluster(const Problem& p, std::span<const Touch> touches) const {
  if (touches.size() != 2 || !has_clusters(p.thread_blocks)) return false;
  if (touches[0].thread_block == touches[1].thread_block ||
      touches[0].thread_block / 2 != touches[1].thread_block / 2) {
    return false;
  }
  const auto is_last = [&](const Touch& t) {
    return t.unit + 1 == unit_begin_[t.thread_block + 1];
  };
  const Unit& one = units_[touches[0].unit];
  const Unit& other = units_[touches[1].unit];
  const bool narrow = p.narrow_units && one.is_narrow() && other.is_narrow();
  return std::ranges::all_of(touches, is_last) && !narrow && one.block == other.block &&
         one.blocks == other.blocks;
}

/// The two units of a cluster put their rows together, and each writes half of them to out. Returns
/// the rows that are written.
uint64_t Scheduler::end_in_cluster(std::span<const Touch> touches) {
  const int32_t begin = std::min(touches[0].begin, touches[1].begin);
  const int32_t end = std::max(touches[0].end, touches[1].end);
  for (const Touch& t : touches) {
    const int32_t first = t.thread_block % 2 * kClusterRows;
    Ending& ending = units_[t.unit].ending[t.side];
    ending.touched = ending.direct =
        packed_range(rows_between(std::max(begin, first), std::min(end, first + kClusterRows)));
    exchanged_[t.thread_block] |= 1 << t.side;
  }
  return rows_between(begin, end);
}

/// Says where the rows of one block at one kv head go: those that one unit alone touches to out, as
/// do those that the two of a cluster exchange; the others to partials that are merged.
void Scheduler::end_block(const Problem& p, int32_t block, int32_t kv_head, int64_t& partial_rows) {
  const auto& touches = touches_[static_cast<size_t>(block) * p.kv_heads + kv_head];
  uint64_t touched = 0, shared = 0;  // by one unit at least, by more than one
  for (const Touch& t : touches) {
    const uint64_t rows = rows_between(t.begin, t.end);
    shared |= touched & rows;
    touched |= rows;
  }
  const uint64_t alone = touched & ~shared;
  const bool in_cluster = shared != 0 && is_in_cluster(p, touches);
  const uint64_t ended = in_cluster ? end_in_cluster(touches) : alone;
  uint64_t wanted = rows_before(p.packed_rows() - block * kBlockRows) & ~ended;
  Merge merge{.block = block,
              .kv_head = kv_head,
              .source_begin = static_cast<int32_t>(sources_.size()),
              .sources = 0,
              .rows = {},
              .reserved = {}};
  for (const Touch& t : in_cluster ? std::span<const Touch>() : std::span(touches)) {
    Ending& ending = units_[t.unit].ending[t.side];
    // Those that nobody else touches, as far as they are one stretch.
    const uint64_t mine = alone & rows_between(t.begin, t.end);
    const uint64_t direct = longest_stretch(mine);
    ending.direct = packed_range(direct);
    if (ending.direct == ending.touched) continue;
    wanted |= mine & ~direct;
    ending.partial = static_cast<int32_t>(partial_rows);
    partial_rows += t.end - t.begin;
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
