// From runs to lists: what each block of packed rows, or pair of blocks, attends to.
#include <algorithm>
#include <limits>

#include "core/check.h"
#include "plan/schedule.h"
#include "plan/scratch.h"

namespace pando::cuda {
namespace {

/// Where a run of `tokens` may start, so that most of its boxes are whole: a long one with a half,
/// a shorter one with a box, and one that has no whole box next to the run before it.
int32_t run_alignment(int32_t tokens, int32_t page_tokens) {
  if (tokens >= kHalfTokens) return kHalfTokens;
  const int32_t box = PageShape::of(page_tokens).box_tokens();
  return tokens >= box ? std::max(box, kGranule) : kGranule;
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
void Scheduler::append_run(const List& list, int32_t stream, Run run, bool own, Layout& out) {
  if (stream == list.alone) {
    const int32_t alone_slot = list.alone_from * kHalfTokens;
    const int32_t before = alone_slot - run.slot_begin;
    if (before > 0 && before < run.token_end - run.token_begin) {
      append_run(list, stream, take_until(run, run.token_begin + before), own, out);
    }
    constexpr uint32_t kBlockOn = kBlockRows | kBlockRows << 8;
    if (run.slot_begin >= alone_slot && stream == 2) run.rows -= kBlockOn;
  }
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

/// Appends a run: where all its rows see only some of its tokens, those by themselves, as far as
/// they fill halves. Tiles of tokens that all rows see need no mask.
void Scheduler::append_all(const Problem& p, const List& list, int32_t stream, const Run& run,
                           const SeenByAll& all, bool own, Layout& out) {
  const int32_t tokens = run.token_end - run.token_begin;
  const int32_t before = std::max(all.range.begin - run.token_begin, 0);
  const int32_t until = std::min(all.range.end - run.token_begin, tokens);
  const auto plain_begin = static_cast<int32_t>(round_up(before, int64_t{kHalfTokens}));
  const int32_t plain_end = until == tokens ? tokens : until / kHalfTokens * kHalfTokens;
  Run left = run;
  const auto append_until = [&](int32_t into, uint32_t flags) {
    const int32_t token_end = run.token_begin + into;
    if (token_end <= left.token_begin) return;
    Run part = take_until(left, token_end);
    part.rows |= flags;
    append_exact(p, list, stream, part, own, out);
  };
  if (plain_begin < plain_end) {
    append_until(plain_begin, 0);
    append_until(plain_end, Run::kPlain | (all.by_every_row ? Run::kFull : 0));
  }
  append_until(tokens, 0);
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
    slot = round_up(slot, run_alignment(end - begin, p.forest.page_tokens()));
    append_all(p, list, stream,
               {.slot_begin = static_cast<int32_t>(slot),
                .token_begin = begin,
                .token_end = end,
                .page_offset = p.forest.page_indptr()[run.sequence],
                .rows = static_cast<uint32_t>(row_begin | row_end << 8),
                .reserved = {}},
               {.range = all, .by_every_row = row_begin == low && row_end == high}, own, out);
    slot += round_up(end - begin, kGranule);
    if (counts) out.kv_tokens += int64_t{end - begin} * p.kv_heads;
  };
  for (VisibleRange part : seen_) {
    // A box of 8 tokens, or of a smaller page, must not cross a page: what comes before a multiple
    // of that is a run by itself.
    const int32_t box = PageShape::of(p.forest.page_tokens()).small_box_tokens();
    const int32_t next = part.begin / box * box + box;
    if (part.begin % box != 0 && next < part.end) {
      add(part.begin, next);
      part.begin = next;
    }
    add(part.begin, part.end);
  }
}

/// What narrow units of the runs of a single block would be.
Scheduler::NarrowCut Scheduler::narrow_cut(const Problem& p, std::span<const int32_t> runs) {
  NarrowCut cut;
  NarrowRows rows;
  for (const int32_t i : runs) {
    const pando::Run& run = p.runs[i];
    cut.fits &= (run.row_end - run.row_begin) * p.group <= kNarrowRows;
    cut.units += rows.begin_unit(run, p.group) ? 1 : 0;
    cut.tokens += run.token_end - run.token_begin;
  }
  return cut;
}

/// The runs of one stream of a list, one after another.
void Scheduler::fill_stream(const Problem& p, std::span<const int32_t> runs, List& list,
                            int32_t stream, Layout& out) {
  list.begin[stream] = static_cast<int32_t>(out.halves.size());
  NarrowCut narrow{};
  if (p.narrow_units && list.blocks == 1) narrow = narrow_cut(p, runs);
  out.narrow_fits &= narrow.fits;
  out.list_tokens += narrow.tokens;
  if (narrow.pays()) out.narrow_tokens += narrow.tokens;
  NarrowRows rows;
  int64_t slot = 0;
  for (const int32_t run : runs) {
    // Rows that are too many for a narrow unit have no tile in common then.
    if (narrow.pays() && rows.begin_unit(p.runs[run], p.group)) {
      slot = round_up(slot, int64_t{kTileTokens});
    }
    place_run(p, p.runs[run], list, stream, slot, out);
    check_slots(slot);
  }
  list.end[stream] = static_cast<int32_t>(out.halves.size());
}

/// What one block of a pair has beyond the other's, as a list over that block.
Scheduler::List Scheduler::take_alone(List& list) {
  List alone{};
  alone.block = list.block + list.alone - 1;
  alone.blocks = 1;
  alone.begin[1] = list.begin[list.alone] + list.alone_from;
  alone.end[1] = list.end[list.alone];
  list.end[list.alone] = alone.begin[1];
  return alone;
}

/// Deals the runs to lists over `blocks_a_list` blocks. A run that only one block of a pair sees
/// goes to that block's stream. Where one of these has many more tokens than the other, what it has
/// beyond is a list by itself: a tile of one half would take nearly as long as one of two.
void Scheduler::make_layout(const Problem& p, int32_t blocks_a_list, Layout& out) {
  out.runs.clear();
  out.halves.clear();
  out.own.clear();
  out.lists.clear();
  out.kv_tokens = 0;
  out.list_tokens = out.narrow_tokens = 0;
  out.narrow_fits = p.narrow_units;
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
  const auto add = [&](List list) {
    list.whole_tiles = (list.halves(0) + 1) / 2;
    list.split_tiles =
        list.blocks == 2 ? std::max(list.halves(1), list.halves(2)) : (list.halves(1) + 1) / 2;
    if (list.steps() > 0) out.lists.push_back(list);
  };
  for (int32_t i = 0; i < lists; ++i) {
    List list{};
    list.block = i * blocks_a_list;
    list.blocks = std::min(blocks_a_list, blocks - list.block);
    const auto tokens = [&](int32_t stream) {
      int64_t sum = 0;
      for (const int32_t run : members_[stream][i]) {
        sum += p.runs[run].token_end - p.runs[run].token_begin;
      }
      return sum;
    };
    const int64_t in_one = tokens(1), in_other = tokens(2);
    const int32_t shorter = list.blocks == 2 && in_one > in_other ? 2 : 1;
    for (const int32_t stream : {0, shorter, 3 - shorter}) {
      if (list.blocks == 2 && stream == 3 - shorter) {
        const int64_t more = std::max(in_one, in_other) / kHalfTokens - list.halves(shorter);
        const double spared_us = static_cast<double>(more) / 2 * p.cost.split_tile_us;
        if (spared_us > p.cost.unit_us + p.cost.merge_us) {
          list.alone = stream;
          list.alone_from = list.halves(shorter);
        }
      }
      fill_stream(p, members_[stream][i], list, stream, out);
    }
    if (list.alone != 0 && list.halves(list.alone) > list.alone_from) {
      const List alone = take_alone(list);
      add(list);
      add(alone);
    } else {
      add(list);
    }
  }
}

/// The time of each step by itself.
void Scheduler::time_steps(const Problem& p, Layout& out) {
  out.steps.clear();
  const auto runs = [&](int32_t half, int32_t end) {
    return half < end ? out.halves[half].runs : 1;
  };
  const auto add = [&](double us, int32_t runs_of_one, int32_t runs_of_other, bool own) {
    const int32_t more = std::max({runs_of_one, runs_of_other, 1}) - 1;
    out.steps.push_back({us + p.cost.run_us * more, own});
  };
  for (const List& list : out.lists) {
    const int32_t* const end = list.end;
    for (int32_t half = list.begin[0]; half < end[0]; half += 2) {
      add(p.cost.whole_tile_us, runs(half, end[0]), runs(half + 1, end[0]), out.own[half] != 0);
    }
    for (int32_t i = 0; i < list.split_tiles; ++i) {
      const int32_t half = list.begin[1] + i * (list.blocks == 2 ? 1 : 2);
      const int32_t other = list.blocks == 2 ? list.begin[2] + i : half + 1;
      const bool own = list.blocks == 2 || out.own[half] != 0;
      add(p.cost.split_tile_us, runs(half, end[1]), runs(other, end[list.blocks]), own);
    }
  }
}

/// Predicted times up to the end of each step. Where memory is the bound of the whole, steps that
/// must come from memory weigh more, so that the shares are equal in the end.
void Scheduler::weigh_steps(const Problem& p, Layout& out) {
  time_steps(p, out);
  double own_us = 0, other_us = 0;
  for (const Step& step : out.steps) (step.own ? own_us : other_us) += step.us;
  const auto token_bytes = static_cast<double>(p.token_head_bytes);
  const auto steps = static_cast<double>(out.steps.size());
  const auto own_steps = static_cast<double>(std::ranges::count(out.steps, true, &Step::own));
  const double tile_bytes = kTileTokens * token_bytes * p.kv_heads;
  const double bytes = std::min(static_cast<double>(out.kv_tokens) * token_bytes,
                                static_cast<double>(p.memory_bytes));
  const bool cached = bytes - own_steps * tile_bytes <= static_cast<double>(p.cache_bytes);
  out.apart_us = (cached ? bytes : steps * tile_bytes) / p.memory_bytes_per_us;
  const double memory_us = bytes / std::max(1, p.kv_heads) / p.memory_bytes_per_us;
  const double l2_us = steps * kTileTokens * token_bytes / p.cost.l2_bytes_per_us;
  const double all_us = std::max(memory_us, l2_us) * p.thread_blocks;
  const bool bound = own_us > 0 && all_us > own_us + other_us;
  out.own_factor = bound ? (all_us - other_us) / own_us : 1;
  out.until_us.clear();
  out.own_until_us.clear();
  size_t next = 0;
  for (List& list : out.lists) {
    list.step_begin = static_cast<int32_t>(out.until_us.size());
    double until_us = 0, own_until_us = 0;
    out.until_us.push_back(until_us);
    out.own_until_us.push_back(own_until_us);
    for (int32_t i = 0; i < list.steps(); ++i) {
      const Step& step = out.steps[next++];
      until_us += step.own ? step.us * out.own_factor : step.us;
      own_until_us += step.own ? step.us : 0;
      out.until_us.push_back(until_us);
      out.own_until_us.push_back(own_until_us);
    }
  }
}

}  // namespace pando::cuda
