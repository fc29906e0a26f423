// Batch-invariant schedules: what is computed for a row, and in which order, depends on its own
// sequence alone.
//
// 1. Every list is over a pair of blocks and has whole tiles only: one warpgroup takes a row from
//    its first token to its last. The last pair may lack its second block.
// 2. Positions [128 i, 128 i + 128) of a sequence are a stretch. What a row sees of a stretch lies
//    in one tile, in order, without any of its other stretches, and at slots that equal the
//    positions modulo 16: the second product adds up 16 slots at a time, the softmax 8 in turn.
//    Where in the tile it lies, and what of other rows lies beside it, does not matter: such slots
//    have weight 0, which leaves sums as they are. Where the kernel takes half a tile at once, all
//    this holds for the halves of stretches and of tiles, too.
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
#include <limits>

#include "plan/schedule.h"
#include "plan/scratch.h"

namespace pando::cuda {
namespace {

constexpr int32_t kPairRows = 2 * kBlockRows;
constexpr int32_t kStep = 16;  ///< tokens of one step of the second product

/// Where in a tile a piece of a stretch may begin: at its position modulo this. Pieces of more than
/// a few tokens begin with a half of a tile.
int32_t alignment_of(int32_t tokens) { return tokens > kStep ? kHalfTokens : kStep; }

/// Slots that tokens [begin, end) of one run take, but for what they leave free.
int64_t slots_of(VisibleRange tokens) {
  const int32_t count = tokens.end - tokens.begin / kGranule * kGranule;
  return round_up(count, alignment_of(count));
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

/// How much of many sequences' own tokens a unit holds is free: several sizes are tried, and what
/// is predicted to be fastest stays. Long units end less often, short ones come out evenly. All are
/// four tiles times a power of two, unless there is less for each thread block: units of 12 tiles
/// took 10 to 29 % longer than those of 16 (docs/benchmarks/h200-kernel-masks-2026-11-29.txt).
void Scheduler::build_invariant(const Problem& p) {
  constexpr int64_t kLeast = 4 * kTileTokens, kMost = 32 * kTileTokens;
  constexpr double kHopeless = 1.02;  // shorter ones are worse still
  const int64_t share = deal_to_pairs(p) * p.kv_heads / p.thread_blocks;
  int64_t most_slots = std::clamp(share, int64_t{kTileTokens}, kLeast);
  while (2 * most_slots <= std::min(share, kMost)) most_slots *= 2;
  chosen_ = nullptr;
  while (true) {
    Layout& out = layouts_[chosen_ == &layouts_[0] ? 1 : 0];
    make_invariant_layout(p, most_slots, out);
    if (chosen_ != nullptr && out.pieces.size() * p.kv_heads == chosen_->pieces.size()) return;
    weigh_steps(p, out);
    deal_units(p, out);
    if (chosen_ == nullptr || out.predicted_us < chosen_->predicted_us) chosen_ = &out;
    most_slots /= 2;
    if (most_slots < kLeast || out.predicted_us > kHopeless * chosen_->predicted_us) return;
  }
}

void Scheduler::make_invariant_layout(const Problem& p, int64_t most_slots, Layout& out) {
  out.runs.clear();
  out.halves.clear();
  out.own.clear();
  out.lists.clear();
  out.pieces.clear();
  out.kv_tokens = 0;
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
  const bool by_halves = p.tokens_at_once == kHalfTokens;
  const auto in_two = [](int64_t first, int64_t end) {
    return first / kHalfTokens != (end - 1) / kHalfTokens;
  };
  const bool aligned = by_halves && in_two(begin, tokens.end);
  const int32_t align = aligned ? kHalfTokens : alignment_of(tokens.end - begin);
  const int32_t offset = begin % align;
  const int64_t slots = round_up(tokens.end - begin, kGranule);
  const auto in_tile = static_cast<int32_t>(slot % kTileTokens);
  auto at = static_cast<int32_t>(offset + round_up(std::max(in_tile - offset, 0), align));
  if (by_halves && !aligned && in_two(at, at + slots)) at = offset + round_up(at, kHalfTokens);
  if (at + std::min<int64_t>(slots, kTileTokens) > kTileTokens) at = kTileTokens + offset;
  slot += at - in_tile;
  check_slots(slot + slots);
  const pando::Run& run = p.runs[seen.run];
  const int32_t first = list.block * kBlockRows;
  const int32_t present = std::min(kPairRows, p.packed_rows() - first);
  const bool own = run.row_begin * p.group >= first && run.row_end * p.group <= first + present;
  // What comes before the first token counts as empty, not as unseen.
  const VisibleRange all{seen.all.begin <= tokens.begin ? begin : seen.all.begin, seen.all.end};
  append_all(p, list, 0,
             {.slot_begin = static_cast<int32_t>(slot),
              .token_begin = begin,
              .token_end = tokens.end,
              .page_offset = p.forest.page_indptr()[run.sequence],
              .rows = static_cast<uint32_t>(seen.row_begin | seen.row_end << 8) |
                      ((1u << skip) - 1) << Run::kEmptyShift,
              .reserved = {}},
             {.range = all, .by_every_row = seen.row_begin == 0 && seen.row_end == present}, own,
             out);
  slot += slots;
  // Once for all units that share them: in the one with the run's first row.
  if (run.row_begin * p.group >= first && seen.row_begin == run.row_begin * p.group - first) {
    out.kv_tokens += int64_t{tokens.end - tokens.begin} * p.kv_heads;
  }
}

}  // namespace pando::cuda
