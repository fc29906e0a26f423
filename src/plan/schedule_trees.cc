// Trees of draft tokens: tokens between those of a run that none of its rows sees. They keep their
// slots, so that what a row adds up, and in which order, does not depend on what others see; but V
// of such a token may be NaN, so that the slots must count as empty.
#include <algorithm>
#include <bit>

#include "plan/schedule.h"

namespace pando::cuda {

/// Leaves in holes_ the tokens of `within` that none of packed rows [packed_begin, packed_end)
/// sees, in order.
void Scheduler::find_holes(const Problem& p, int32_t packed_begin, int32_t packed_end,
                           VisibleRange within) {
  exact_.clear();
  const auto add = [&](int32_t begin, int32_t end) {
    const VisibleRange part{std::max(begin, within.begin), std::min(end, within.end)};
    if (part.begin < part.end) exact_.push_back(part);
  };
  for (int32_t r = packed_begin / p.group; r <= (packed_end - 1) / p.group; ++r) {
    const PlanRow& row = p.order.rows[r];
    add(row.visible_begin, row.tree_begin);
    int32_t at = row.tree_begin;
    for (uint64_t left = row.tree_mask; left != 0;) {
      const int32_t unseen = std::countr_zero(left);
      const int32_t seen = std::countr_one(left >> unseen);
      add(at + unseen, at + unseen + seen);
      at += unseen + seen;
      left = unseen + seen < 64 ? left >> (unseen + seen) : 0;
    }
  }
  std::ranges::sort(exact_, {}, &VisibleRange::begin);
  holes_.clear();
  int32_t next = within.begin;
  for (const VisibleRange part : exact_) {
    if (next < part.begin) holes_.push_back({next, part.begin});
    next = std::max(next, part.end);
  }
  if (next < within.end) holes_.push_back({next, within.end});
}

/// Appends a run as append_run does, but where rows have holes in several: one by itself for each
/// granule with tokens that none of the run's rows sees.
void Scheduler::append_exact(const Problem& p, const List& list, int32_t stream, const Run& run,
                             bool own, Layout& out) {
  if (!p.order.has_holes) return append_run(list, stream, run, own, out);
  const int32_t first = list.block * kBlockRows;
  find_holes(p, first + static_cast<int32_t>(run.rows & 255),
             first + static_cast<int32_t>(run.rows >> 8 & 255), {run.token_begin, run.token_end});
  Run left = run;
  const auto append_until = [&](int32_t token_end) {
    if (token_end <= left.token_begin) return;
    append_run(list, stream, take_until(left, token_end), own, out);
  };
  for (size_t i = 0; i < holes_.size();) {
    const int32_t into = holes_[i].begin - left.token_begin;
    append_until(left.token_begin + into / kGranule * kGranule);
    const int32_t end = std::min(left.token_begin + kGranule, left.token_end);
    for (; i < holes_.size() && holes_[i].begin < end; ++i) {
      const VisibleRange hole{holes_[i].begin, std::min(holes_[i].end, end)};
      const uint32_t slots = (1u << (hole.end - hole.begin)) - 1;
      left.rows |= slots << (hole.begin - left.token_begin) << pando::cuda::Run::kEmptyShift;
      holes_[i].begin = hole.end;
      if (holes_[i].begin < holes_[i].end) break;  // it goes on in the next granule
    }
    append_until(end);
  }
  append_until(left.token_end);
}

}  // namespace pando::cuda
