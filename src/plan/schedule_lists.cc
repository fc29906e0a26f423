// From runs to lists: what each block of packed rows, or pair of blocks, attends to.
#include <algorithm>
#include <limits>

#include "core/check.h"
#include "plan/schedule.h"
#include "plan/scratch.h"

namespace pando::cuda {
namespace {

constexpr int64_t kMostSlots = int64_t{1} << 30;  ///< of a stream

/// Where a run of `tokens` may start, so that most of its boxes are whole.
int32_t run_alignment(int32_t tokens) {
  if (tokens > 16) return kHalfTokens;
  return tokens > kGranule ? 2 * kGranule : kGranule;
}

}  // namespace

void Scheduler::check_slots(int64_t slots) {
  if (slots <= kMostSlots) return;
  fail(ErrorCode::kUnsupported,
       "batch: got {} tokens under one block of rows, the CUDA backend supports {}", slots,
       kMostSlots);
}

/// Leaves in seen_ the bounds of what packed rows [packed_begin, packed_end) see of the run's
/// tokens `within`: ranges in order, with unseen tokens between. Returns what all of the rows see.
VisibleRange Scheduler::find_seen(const Problem& p, const pando::Run& run, int32_t packed_begin,
                                  int32_t packed_end, VisibleRange within) {
  const VisibleRange tokens{std::max(run.token_begin, within.begin),
                            std::min(run.token_end, within.end)};
  VisibleRange all{0, std::numeric_limits<int32_t>::max()};
  seen_.clear();
  for (int32_t r = packed_begin / p.group; r <= (packed_end - 1) / p.group; ++r) {
    const PlanRow& row = p.order.rows[r];
    all.begin = std::max(all.begin, row.visible_begin);
    all.end = std::min(all.end, row.tree_begin);
    const VisibleRange part{std::max(tokens.begin, row.visible_begin),
                            std::min(tokens.end, row.visible_end)};
    if (part.begin >= part.end) continue;
    if (!seen_.empty() && seen_.back().begin <= part.begin && part.begin <= seen_.back().end) {
      seen_.back().end = std::max(seen_.back().end, part.end);
    } else {
      seen_.push_back(part);
    }
  }
  std::ranges::sort(seen_, {}, &VisibleRange::begin);
  size_t count = 0;
  for (const VisibleRange part : seen_) {
    if (count > 0 && part.begin <= seen_[count - 1].end) {
      seen_[count - 1].end = std::max(seen_[count - 1].end, part.end);
    } else {
      seen_[count++] = part;
    }
  }
  seen_.resize(count);
  return all;
}

/// Appends a run to a stream, and the halves that it reaches. `own`: no other list reads it.
void Scheduler::append_run(const List& list, int32_t stream, const Run& run, bool own,
                           Layout& out) {
  const auto index = static_cast<int32_t>(out.runs.size());
  const int64_t slot_end =
      run.slot_begin + round_up(run.token_end - run.token_begin, int64_t{kGranule});
  const auto halves = [&] { return static_cast<int64_t>(out.halves.size()) - list.begin[stream]; };
  const auto add_half = [&] {
    out.halves.push_back({static_cast<int32_t>(halves() * kHalfTokens), index, 0, 0});
    out.own.push_back(own);
  };
  int64_t half = run.slot_begin / kHalfTokens;
  while (halves() < half) add_half();  // without a token
  for (; half * kHalfTokens < slot_end; ++half) {
    if (halves() == half) add_half();
    ++out.halves.back().runs;
  }
  out.runs.push_back(run);
}

/// Appends what the list's rows see of a run to a stream, and nothing that none of them sees: V of
/// such a token may be NaN. `slot` is the end of the stream so far.
void Scheduler::place_run(const Problem& p, const pando::Run& run, const List& list, int32_t stream,
                          int64_t& slot, Layout& out) {
  const int32_t first = list.block * kBlockRows;
  const int32_t present = std::min(list.blocks * kBlockRows, p.packed_rows() - first);
  const int32_t row_begin = std::max(0, run.row_begin * p.group - first);
  const int32_t row_end = std::min(present, run.row_end * p.group - first);
  // Of a stream for one block of two, only that block's rows come by.
  const int32_t low = list.blocks == 2 && stream == 2 ? kBlockRows : 0;
  const int32_t high = list.blocks == 2 && stream == 1 ? kBlockRows : present;
  const bool own = run.row_begin * p.group >= first && run.row_end * p.group <= first + present;
  const bool counts = run.row_begin * p.group >= first;
  const VisibleRange all =
      find_seen(p, run, first + row_begin, first + row_end, {run.token_begin, run.token_end});
  const auto add = [&](int32_t begin, int32_t end) {
    const bool plain = all.begin <= begin && end <= all.end;
    const bool full = plain && row_begin == low && row_end == high;
    slot = round_up(slot, run_alignment(end - begin));
    append_all(p, list, stream,
               {.slot_begin = static_cast<int32_t>(slot),
                .token_begin = begin,
                .token_end = end,
                .page_offset = p.forest.page_indptr()[run.sequence],
                .rows = static_cast<uint32_t>(row_begin | row_end << 8) | (full ? Run::kFull : 0) |
                        (plain ? Run::kPlain : 0),
                .reserved = {}},
               own, out);
    slot += round_up(end - begin, kGranule);
    if (counts) out.kv_tokens += int64_t{end - begin} * p.kv_heads;
  };
  for (VisibleRange part : seen_) {
    // A box of 8 tokens, or of a smaller page, must not cross a page: what comes before a multiple
    // of that is a run by itself.
    const int32_t box = std::min(kGranule, p.forest.page_tokens());
    const int32_t next = part.begin / box * box + box;
    if (part.begin % box != 0 && next < part.end) {
      add(part.begin, next);
      part.begin = next;
    }
    add(part.begin, part.end);
  }
}

/// Deals the runs to lists over `blocks_a_list` blocks. A run that only one block of a pair sees
/// goes to that block's stream.
void Scheduler::make_layout(const Problem& p, int32_t blocks_a_list, Layout& out) {
  out.runs.clear();
  out.halves.clear();
  out.own.clear();
  out.lists.clear();
  out.kv_tokens = 0;
  const int32_t blocks = p.blocks();
  const int32_t lists = (blocks + blocks_a_list - 1) / blocks_a_list;
  for (auto& stream : members_) {
    stream.resize(std::max(stream.size(), static_cast<size_t>(lists)));
    for (int32_t i = 0; i < lists; ++i) stream[i].clear();
  }
  for (int32_t i = 0; i < static_cast<int32_t>(p.runs.size()); ++i) {
    const int32_t first = p.runs[i].row_begin * p.group / kBlockRows;
    const int32_t last = (p.runs[i].row_end * p.group - 1) / kBlockRows;
    for (int32_t list = first / blocks_a_list; list <= last / blocks_a_list; ++list) {
      const int32_t base = list * blocks_a_list;
      const bool alone = blocks_a_list == 1 || base + 1 == blocks;
      const bool high = last > base;
      members_[alone || !high ? 1 : first <= base ? 0 : 2][list].push_back(i);
    }
  }
  for (int32_t i = 0; i < lists; ++i) {
    List list{};
    list.block = i * blocks_a_list;
    list.blocks = std::min(blocks_a_list, blocks - list.block);
    for (int32_t stream = 0; stream < 3; ++stream) {
      list.begin[stream] = static_cast<int32_t>(out.halves.size());
      int64_t slot = 0;
      for (const int32_t run : members_[stream][i]) {
        place_run(p, p.runs[run], list, stream, slot, out);
        check_slots(slot);
      }
      list.end[stream] = static_cast<int32_t>(out.halves.size());
    }
    const auto halves = [&](int32_t stream) { return list.end[stream] - list.begin[stream]; };
    list.whole_tiles = (halves(0) + 1) / 2;
    list.split_tiles = list.blocks == 2 ? std::max(halves(1), halves(2)) : (halves(1) + 1) / 2;
    if (list.steps() > 0) out.lists.push_back(list);
  }
}

/// Predicted time of each step, where one that must come from memory takes `own_factor` times as
/// long. Returns the time of all the others, and that of these in `own_us`.
double Scheduler::weigh(const Problem& p, double own_factor, double& own_us, Layout& out) {
  out.until_us.clear();
  own_us = 0;
  double other_us = 0;
  for (List& list : out.lists) {
    list.step_begin = static_cast<int32_t>(out.until_us.size());
    double until_us = 0;
    out.until_us.push_back(until_us);
    for (int32_t i = 0; i < list.steps(); ++i) {
      const int32_t split = i - list.whole_tiles;
      const bool own = split < 0          ? out.own[list.begin[0] + i * 2] != 0
                       : list.blocks == 2 ? true
                                          : out.own[list.begin[1] + split * 2] != 0;
      const auto runs = [&](int32_t half, int32_t end) {
        return half < end ? out.halves[half].runs : 0;
      };
      int32_t most_runs = 1;
      double us = 0;
      if (split < 0) {
        us = p.cost.whole_tile_us;
        for (int32_t half = 0; half < 2; ++half) {
          most_runs = std::max(most_runs, runs(list.begin[0] + i * 2 + half, list.end[0]));
        }
      } else {
        us = p.cost.split_tile_us;
        for (int32_t side = 0; side < 2; ++side) {
          most_runs = std::max(
              most_runs, list.blocks == 2 ? runs(list.begin[1 + side] + split, list.end[1 + side])
                                          : runs(list.begin[1] + split * 2 + side, list.end[1]));
        }
      }
      us += p.cost.run_us * (most_runs - 1);
      (own ? own_us : other_us) += us;
      until_us += own ? us * own_factor : us;
      out.until_us.push_back(until_us);
    }
  }
  return other_us;
}

/// Where memory is the bound of the whole, steps that must come from memory weigh more, so that the
/// shares are equal in the end.
void Scheduler::weigh_steps(const Problem& p, Layout& out) {
  double own_us = 0;
  const double other_us = weigh(p, 1, own_us, out);
  const auto token_bytes = static_cast<double>(p.token_head_bytes);
  int64_t steps = 0;
  for (const List& list : out.lists) steps += list.steps();
  const int64_t tokens = out.kv_tokens / std::max(1, p.kv_heads);
  const double memory_us = static_cast<double>(tokens) * token_bytes / p.cost.memory_bytes_per_us;
  const double l2_us =
      static_cast<double>(steps) * kTileTokens * token_bytes / p.cost.l2_bytes_per_us;
  const double all_us = std::max(memory_us, l2_us) * p.thread_blocks;
  if (own_us > 0 && all_us > own_us + other_us) weigh(p, (all_us - other_us) / own_us, own_us, out);
}

}  // namespace pando::cuda
