// Batch-invariant schedules: what is computed for a row, and in which order, depends on its own
// sequence alone.
//
// 1. Every list is over a pair of blocks and has whole tiles only: one warpgroup takes a row from
//    its first token to its last. The last pair may lack its second block.
// 2. Positions [128 i, 128 i + 128) of a sequence are a stretch. What a row sees of a stretch lies
//    in one tile, in order, without any of its other stretches, and at slots that equal the
//    positions modulo 16: the second product adds up 16 slots at a time, the softmax 8 in turn.
//    Where in the tile it lies, and what of other rows lies beside it, does not matter: such slots
//    have weight 0, which leaves sums as they are.
// 3. A row's stretches come in ascending order: in each unit first those of which the beginning is
//    missing, then the full ones, then those of which the end is missing. A run begins and ends at
//    a multiple of 128, but for the end of a sequence.
// 4. A unit holds all that its rows see in one cut, positions [cut_tokens i, cut_tokens i +
//    cut_tokens). Which rows are in a unit is free.
// 5. A row's partials are merged in the order of the cuts, two at a time, and a merge has no source
//    that any of its rows has nothing in. Always in the shape for many rows: that for few takes
//    more at a time. A row with one cut goes to out at once; the merge of one partial would give
//    the same bits, its weight being exactly 1.
#include <algorithm>
#include <bit>
#include <limits>
#include <tuple>

#include "core/check.h"
#include "plan/schedule.h"
#include "plan/scratch.h"

namespace pando::cuda {
namespace {

constexpr int32_t kPairRows = 2 * kBlockRows;
constexpr int32_t kStep = 16;  ///< tokens of one step of the second product

/// Where in a tile a piece of a stretch may begin: at its position modulo this. Pieces of more than
/// a few tokens keep the boxes of 64 whole.
int32_t alignment_of(int32_t tokens) { return tokens > kStep ? kHalfTokens : kStep; }

/// Slots that tokens [begin, end) of one run take, but for what they leave free.
int32_t slots_of(VisibleRange tokens) {
  const int32_t count = tokens.end - tokens.begin / kGranule * kGranule;
  return static_cast<int32_t>(round_up(count, alignment_of(count)));
}

/// Rows of a block as one bit each: from the first to the last, as begin | end << 8.
uint32_t packed_range(uint64_t rows) {
  if (rows == 0) return 0;
  const auto begin = static_cast<uint32_t>(std::countr_zero(rows));
  return begin | static_cast<uint32_t>(kBlockRows - std::countl_zero(rows)) << 8;
}

/// The longest row of ones, the first of equals.
uint64_t longest_stretch(uint64_t bits) {
  uint64_t last = bits;  // bit i: from here on so many ones as were asked for so far
  int32_t length = 0;
  for (uint64_t left = bits; left != 0; left &= left >> 1) {
    last = left;
    ++length;
  }
  if (length == 0) return 0;
  const uint64_t ones = length == kBlockRows ? ~uint64_t{0} : (uint64_t{1} << length) - 1;
  return ones << std::countr_zero(last);
}

int32_t cuts_of(const PlanRow& row, int32_t cut_tokens) {
  if (row.visible_begin >= row.visible_end) return 0;
  return (row.visible_end - 1) / cut_tokens - row.visible_begin / cut_tokens + 1;
}

}  // namespace

/// Deals the runs to lists over pairs of blocks. Returns about how many slots they take.
int64_t Scheduler::deal_to_pairs(const Problem& p) {
  auto& lists = members_[0];
  const int32_t count = (p.blocks() + 1) / 2;
  lists.resize(std::max(lists.size(), static_cast<size_t>(count)));
  for (int32_t i = 0; i < count; ++i) lists[i].clear();
  int64_t slots = 0;
  for (int32_t i = 0; i < static_cast<int32_t>(p.runs.size()); ++i) {
    const pando::Run& run = p.runs[i];
    const int32_t first = run.row_begin * p.group / kPairRows;
    const int32_t last = (run.row_end * p.group - 1) / kPairRows;
    for (int32_t list = first; list <= last; ++list) lists[list].push_back(i);
    slots += int64_t{last - first + 1} * slots_of({run.token_begin, run.token_end});
  }
  return slots;
}

void Scheduler::make_invariant_layout(const Problem& p, Layout& out) {
  out.runs.clear();
  out.halves.clear();
  out.own.clear();
  out.lists.clear();
  out.pieces.clear();
  out.kv_tokens = 0;
  // A unit of many sequences' own tokens may be as long as the batch likes: one for each thread
  // block where there is little, some where there is more, so that the shares come out even.
  const int64_t share = deal_to_pairs(p) * p.kv_heads / p.thread_blocks;
  constexpr int64_t kFewTiles = 4, kUnitsAShare = 4;
  const int64_t most_slots = std::max(
      {int64_t{kTileTokens}, share / kUnitsAShare, std::min(share, kFewTiles * kTileTokens)});
  for (int32_t i = 0; i < (p.blocks() + 1) / 2; ++i) {
    List list{};
    list.block = 2 * i;
    list.blocks = 2;
    for (int32_t& begin : list.begin) begin = static_cast<int32_t>(out.halves.size());
    out.lists.push_back(list);
    int64_t slot = 0;
    place_in_cuts(p, i, most_slots, slot, out);
    List& placed = out.lists.back();
    for (int32_t& end : placed.end) end = static_cast<int32_t>(out.halves.size());
    placed.begin[1] = placed.begin[2] = placed.end[0];
    placed.whole_tiles = (placed.end[0] - placed.begin[0] + 1) / 2;
  }
}

/// Cut by cut, and in each cut as many rows to a unit as have about `most_slots` slots. Rows of two
/// units both read what they share in the cut: worth it while each has as much of its own.
void Scheduler::place_in_cuts(const Problem& p, int32_t list, int64_t most_slots, int64_t& slot,
                              Layout& out) {
  const int32_t first = list * kPairRows;
  const int32_t present = std::min(kPairRows, p.packed_rows() - first);
  const auto& members = members_[0][list];
  VisibleRange whole{std::numeric_limits<int32_t>::max(), 0};
  spans_.clear();
  for (const int32_t index : members) {
    const pando::Run& run = p.runs[index];
    find_seen(p, run, std::max(first, run.row_begin * p.group),
              std::min(first + present, run.row_end * p.group), {run.token_begin, run.token_end});
    spans_.push_back(seen_.empty() ? VisibleRange{0, 0}
                                   : VisibleRange{seen_.front().begin, seen_.back().end});
    if (seen_.empty()) continue;
    whole.begin = std::min(whole.begin, spans_.back().begin);
    whole.end = std::max(whole.end, spans_.back().end);
  }
  for (int32_t cut = whole.begin / p.cut_tokens; int64_t{cut} * p.cut_tokens < whole.end; ++cut) {
    const int32_t cut_begin = cut * p.cut_tokens;
    const int64_t cut_end = int64_t{cut_begin} + p.cut_tokens;
    unit_parts_.clear();
    open_parts_.clear();
    int32_t row_begin = 0;
    int64_t slots = 0, common_slots = 0;
    for (size_t i = 0; i < members.size(); ++i) {
      const VisibleRange tokens{std::max(spans_[i].begin, cut_begin),
                                static_cast<int32_t>(std::min<int64_t>(spans_[i].end, cut_end))};
      if (tokens.begin >= tokens.end) continue;
      const pando::Run& run = p.runs[members[i]];
      const Part part{.run = members[i],
                      .row_begin = std::max(0, run.row_begin * p.group - first),
                      .row_end = std::min(present, run.row_end * p.group - first),
                      .slots = slots_of(tokens)};
      while (!open_parts_.empty() && open_parts_.back().row_end <= part.row_begin) {
        common_slots -= open_parts_.back().slots;
        open_parts_.pop_back();
      }
      if (part.row_begin > row_begin && slots + part.slots > most_slots &&
          slots >= 2 * common_slots && !unit_parts_.empty()) {
        place_unit(p, list, cut, row_begin, part.row_begin, slot, out);
        unit_parts_.assign(open_parts_.begin(), open_parts_.end());
        slots = common_slots;
        row_begin = part.row_begin;
      }
      unit_parts_.push_back(part);
      open_parts_.push_back(part);
      slots += part.slots;
      common_slots += part.slots;
    }
    if (!unit_parts_.empty()) place_unit(p, list, cut, row_begin, present, slot, out);
  }
}

/// All that rows [row_begin, row_end) of a list see in a cut, as one unit at each kv head.
void Scheduler::place_unit(const Problem& p, int32_t list, int32_t cut, int32_t row_begin,
                           int32_t row_end, int64_t& slot, Layout& out) {
  const int32_t first = list * kPairRows;
  const int64_t cut_end = (int64_t{cut} + 1) * p.cut_tokens;
  const VisibleRange within{cut * p.cut_tokens, static_cast<int32_t>(std::min<int64_t>(
                                                    cut_end, std::numeric_limits<int32_t>::max()))};
  unit_seen_.clear();
  for (const Part& part : unit_parts_) {
    Seen seen{
        part.run, std::max(part.row_begin, row_begin), std::min(part.row_end, row_end), {}, {}};
    if (seen.row_begin >= seen.row_end) continue;  // it begins where the unit ends
    seen.all = find_seen(p, p.runs[part.run], first + seen.row_begin, first + seen.row_end, within);
    for (const VisibleRange some : seen_) {
      seen.some = some;
      unit_seen_.push_back(seen);
    }
  }
  if (unit_seen_.empty()) return;
  slot = round_up(slot, kTileTokens);
  const auto begin = static_cast<int32_t>(slot / kTileTokens);
  const List& to = out.lists[list];
  const auto stretch_after = [](int32_t token) {
    return static_cast<int32_t>(
        std::min<int64_t>(round_up(token, kTileTokens), std::numeric_limits<int32_t>::max()));
  };
  for (const Seen& seen : unit_seen_) {
    const int32_t head_end = std::min(stretch_after(seen.some.begin), seen.some.end);
    place_stretch(p, seen, {seen.some.begin, head_end}, to, slot, out);
  }
  slot = round_up(slot, kTileTokens);  // a row may have both a first and a last piece
  for (const Seen& seen : unit_seen_) {
    const int32_t full_begin = stretch_after(seen.some.begin);
    const int32_t full_end = seen.some.end / kTileTokens * kTileTokens;
    place_stretch(p, seen, {full_begin, full_end}, to, slot, out);
  }
  for (const Seen& seen : unit_seen_) {
    const int32_t tail_begin =
        std::max(stretch_after(seen.some.begin), seen.some.end / kTileTokens * kTileTokens);
    place_stretch(p, seen, {tail_begin, seen.some.end}, to, slot, out);
  }
  const auto end = static_cast<int32_t>((slot + kTileTokens - 1) / kTileTokens);
  out.pieces.push_back({list, 0, begin, end, 0, cut});
}

/// Appends a piece of a stretch, or full stretches, to a list; nothing for an empty range.
void Scheduler::place_stretch(const Problem& p, const Seen& seen, VisibleRange tokens,
                              const List& list, int64_t& slot, Layout& out) {
  if (tokens.begin >= tokens.end) return;
  const int32_t skip = tokens.begin % kGranule;
  const int32_t begin = tokens.begin - skip;
  const int32_t align = alignment_of(tokens.end - begin);
  const int32_t offset = begin % align;
  const auto slots = static_cast<int32_t>(round_up(tokens.end - begin, kGranule));
  const auto in_tile = static_cast<int32_t>(slot % kTileTokens);
  auto at = static_cast<int32_t>(offset + round_up(std::max(in_tile - offset, 0), align));
  if (at + std::min(slots, kTileTokens) > kTileTokens) at = kTileTokens + offset;
  slot += at - in_tile;
  check_slots(slot + slots);
  const pando::Run& run = p.runs[seen.run];
  const int32_t first = list.block * kBlockRows;
  const int32_t present = std::min(kPairRows, p.packed_rows() - first);
  const bool own = run.row_begin * p.group >= first && run.row_end * p.group <= first + present;
  const bool plain = seen.all.begin <= tokens.begin && tokens.end <= seen.all.end;
  const bool full = plain && seen.row_begin == 0 && seen.row_end == present;
  append_run(list, 0,
             {.slot_begin = static_cast<int32_t>(slot),
              .token_begin = begin,
              .token_end = tokens.end,
              .page_offset = p.forest.page_indptr()[run.sequence],
              .rows = static_cast<uint32_t>(seen.row_begin | seen.row_end << 8) |
                      static_cast<uint32_t>(skip) << Run::kSkipShift | (full ? Run::kFull : 0) |
                      (plain ? Run::kPlain : 0),
              .reserved = {}},
             own, out);
  slot += slots;
  // Once for all units that share them: in the one with the run's first row.
  if (run.row_begin * p.group >= first && seen.row_begin == run.row_begin * p.group - first) {
    out.kv_tokens += int64_t{tokens.end - tokens.begin} * p.kv_heads;
  }
}

/// Deals the units to the thread blocks: the longest first, each to the one with the least to do.
/// Units of one length keep their order, cut by cut and list by list, so that those that read the
/// same tokens come to run side by side.
void Scheduler::deal_units(const Problem& p, Layout& out) {
  std::ranges::sort(out.pieces, [](const Piece& a, const Piece& b) {
    return std::tie(a.cut, a.list, a.begin) < std::tie(b.cut, b.list, b.begin);
  });
  const auto time_us = [&](const Piece& piece) {
    const double* const until_us = out.until_us.data() + out.lists[piece.list].step_begin;
    return p.cost.unit_us + until_us[piece.end] - until_us[piece.begin];
  };
  const size_t one_head = out.pieces.size();
  by_time_.clear();
  for (size_t i = 0; i < one_head; ++i) {
    by_time_.push_back({static_cast<int64_t>(10 * time_us(out.pieces[i])), i});
  }
  std::ranges::sort(by_time_, [](const TimedPiece& a, const TimedPiece& b) {
    return a.tenths != b.tenths ? a.tenths > b.tenths : a.piece < b.piece;
  });
  out.pieces.resize(one_head * p.kv_heads);
  for (size_t i = one_head; i < out.pieces.size(); ++i) {
    out.pieces[i] = out.pieces[i - one_head];
    ++out.pieces[i].kv_head;
  }
  busy_.clear();
  for (int32_t i = 0; i < p.thread_blocks; ++i) busy_.push_back({0, i});  // a heap
  const auto later = [](const Busy& a, const Busy& b) {
    return a.until_us != b.until_us ? a.until_us > b.until_us : a.thread_block > b.thread_block;
  };
  double last_us = 0;
  for (size_t begin = 0, end = 0; begin < one_head; begin = end) {
    while (end < one_head && by_time_[end].tenths == by_time_[begin].tenths) ++end;
    for (int32_t head = 0; head < p.kv_heads; ++head) {
      for (size_t i = begin; i < end; ++i) {
        Piece& piece = out.pieces[head * one_head + by_time_[i].piece];
        std::ranges::pop_heap(busy_, later);
        piece.thread_block = busy_.back().thread_block;
        busy_.back().until_us += time_us(piece);
        last_us = std::max(last_us, busy_.back().until_us);
        std::ranges::push_heap(busy_, later);
      }
    }
  }
  int32_t most_cuts = 0;
  for (const PlanRow& row : p.order.rows)
    most_cuts = std::max(most_cuts, cuts_of(row, p.cut_tokens));
  out.predicted_us = last_us + (most_cuts > 1 ? p.cost.merge_us + most_cuts * p.cost.source_us : 0);
}

/// By row of a block, how many cuts it sees, and by touch, which rows see something in its cut: the
/// same at every kv head.
void Scheduler::find_sources(const Problem& p, int32_t block) {
  rows_ = {};
  const int32_t present = std::min(kBlockRows, p.packed_rows() - block * kBlockRows);
  const auto row_of = [&](int32_t r) -> const PlanRow& {
    return p.order.rows[(block * kBlockRows + r) / p.group];
  };
  for (int32_t r = 0; r < present; ++r) {
    const int32_t cuts = cuts_of(row_of(r), p.cut_tokens);
    (cuts == 0 ? rows_.without : cuts == 1 ? rows_.with_one : rows_.with_more) |= uint64_t{1} << r;
  }
  holders_.clear();
  for (const Touch& t : touches_[static_cast<size_t>(block) * p.kv_heads]) {
    uint64_t holders = 0;
    for (int32_t r = t.begin; r < t.end; ++r) {
      const PlanRow& row = row_of(r);
      if (row.visible_begin < row.visible_end && row.visible_begin / p.cut_tokens <= t.cut &&
          t.cut <= (row.visible_end - 1) / p.cut_tokens) {
        holders |= uint64_t{1} << r;
      }
    }
    holders_.push_back(holders);
  }
}

/// As end_block; a merge for each set of rows that have the same sources.
void Scheduler::end_block_in_cuts(const Problem& p, int32_t block, int32_t kv_head,
                                  int64_t& partial_rows) {
  const auto& touches = touches_[static_cast<size_t>(block) * p.kv_heads + kv_head];
  if (kv_head == 0) find_sources(p, block);
  uint64_t merged = rows_.without | rows_.with_more;
  for (size_t i = 0; i < touches.size(); ++i) {
    const Touch& t = touches[i];
    Ending& ending = units_[t.unit].ending[t.side];
    const uint64_t direct = longest_stretch(holders_[i] & rows_.with_one);
    const uint64_t left = holders_[i] & ~direct;
    ending.direct = packed_range(direct);
    ending.touched = packed_range(left == 0 ? direct : holders_[i]);
    if (left == 0) continue;
    merged |= left;
    ending.partial = static_cast<int32_t>(partial_rows);
    partial_rows += (ending.touched >> 8) - (ending.touched & 255);
  }
  alike_.assign(merged != 0 ? 1 : 0, merged);
  for (const uint64_t holders : holders_) {
    for (size_t i = 0, count = alike_.size(); i < count; ++i) {
      const uint64_t others = alike_[i] & ~holders;
      if (others == 0 || others == alike_[i]) continue;
      alike_[i] &= holders;
      alike_.push_back(others);
    }
  }
  for (const uint64_t rows : alike_) {
    Merge merge{.block = block,
                .kv_head = kv_head,
                .source_begin = static_cast<int32_t>(sources_.size()),
                .sources = 0,
                .rows = {static_cast<uint32_t>(rows), static_cast<uint32_t>(rows >> 32)},
                .reserved = {}};
    for (size_t i = 0; i < touches.size(); ++i) {
      if ((holders_[i] & rows) == 0) continue;
      const Touch& t = touches[i];
      const Ending& ending = units_[t.unit].ending[t.side];
      sources_.push_back({.partial = ending.partial,
                          .rows = ending.touched,
                          .writer = t.thread_block * 2 + t.side,
                          .ticket = t.unit - unit_begin_[t.thread_block] + 1});
      ++merge.sources;
    }
    merges_.push_back(merge);
  }
}

}  // namespace pando::cuda
