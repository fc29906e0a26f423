#include "plan/runs.h"

#include <algorithm>
#include <limits>

#include "core/mask.h"

namespace pando {

void RowOrder::build(const Forest& forest, const AttentionSpec& spec) {
  rows.clear();
  row_at.clear();
  drops_tokens = false;
  has_holes = false;
  for (const int32_t sequence : forest.order()) {
    row_at.push_back(static_cast<int32_t>(rows.size()));
    const int32_t first = forest.q_indptr()[sequence];
    const int32_t q_len = forest.q_indptr()[sequence + 1] - first;
    const int32_t kv_len = forest.kv_len()[sequence];
    for (int32_t r = 0; r < q_len; ++r) {
      const RowMask mask = row_mask(spec, first + r, r, q_len, kv_len);
      drops_tokens |= mask.range.begin > 0;
      has_holes |= mask.tree_begin < mask.range.end;
      rows.push_back({.q_row = first + r,
                      .visible_begin = mask.range.begin,
                      .visible_end = mask.range.end,
                      .tree_begin = mask.tree_begin,
                      .tree_mask = mask.tree_mask});
    }
  }
  row_at.push_back(static_cast<int32_t>(rows.size()));
}

VisibleRange RowOrder::seen(int32_t row_begin, int32_t row_end) const {
  VisibleRange all{std::numeric_limits<int32_t>::max(), 0};
  for (int32_t r = row_begin; r < row_end; ++r) {
    if (rows[r].visible_begin >= rows[r].visible_end) continue;
    all.begin = std::min(all.begin, rows[r].visible_begin);
    all.end = std::max(all.end, rows[r].visible_end);
  }
  return all.begin < all.end ? all : VisibleRange{0, 0};
}

namespace {

/// Where a shared run that reaches `token_end` stops: batch-invariant plans share whole cuts only.
int32_t shared_end(int32_t token_end, const PlanOptions& options) {
  return options.batch_invariant ? token_end / options.cut_tokens * options.cut_tokens : token_end;
}

int64_t visible_tokens(const Segment& segment, VisibleRange seen) {
  return std::max(
      0, std::min(segment.token_end, seen.end) - std::max(segment.token_begin, seen.begin));
}

}  // namespace

/// Weighs reading `segment` once, from token `start` on, against leaving it to its readers.
Decision SharingDecider::weigh(const Context& context, int32_t segment, int32_t start,
                               bool below_shared) const {
  const auto& [forest, order, cost, options] = context;
  const Segment& s = forest.segments()[segment];
  const int32_t row_own_end = order.row_at[s.seq_own_end];
  const int32_t row_end = order.row_at[s.seq_end];
  const int32_t rows = row_end - order.row_at[s.seq_begin];
  const VisibleRange seen = seen_[segment];
  const Readers& readers = readers_[segment];

  const int32_t end = shared_end(s.token_end, options);
  const double tokens = std::max(0, std::min(end, seen.end) - std::max(start, seen.begin));
  const double bytes = static_cast<double>(cost.token_bytes());
  const double heads_per_worker = static_cast<double>(cost.kv_heads()) / cost.workers();
  const double once =
      std::max(cost.compute_us(cost.packed(rows)) * heads_per_worker, cost.dram_us(bytes));
  const double again =
      cost.again_us((readers.count - 1) * bytes, static_cast<int64_t>(tokens * bytes));
  const double apart = std::max(readers.compute_us * heads_per_worker, cost.dram_us(bytes) + again);
  // Rows that go on below get one more partial, and a second one when without this segment their
  // result would have been written at once.
  const auto going_on = static_cast<double>(cost.packed(row_end - row_own_end));
  const double partials = going_on * (below_shared ? 1 : 2);

  Decision decision{
      .segment = segment,
      .parent = s.parent,
      .token_begin = s.token_begin,
      .token_end = s.token_end,
      .sequences = s.sequences(),
      .q_rows = rows,
      .reason = Reason::kShared,
      .seen_by = seen_by_[segment],
      .saves_us = readers.count > 1 ? tokens * (apart - once) : 0,
      .costs_us = heads_per_worker * (partials * cost.partial_row_us() + cost.item_us())};
  if (options.sharing == Sharing::kNone) {
    decision.reason = Reason::kSharingOff;
  } else if (seen.end <= s.token_begin || seen.begin >= s.token_end) {
    decision.reason = Reason::kInvisible;
  } else if (end <= start) {
    decision.reason = Reason::kNotWholeCut;
  } else if (seen_by_[segment] < 2) {
    decision.reason = Reason::kOneReader;
  } else if (readers.count < 2 ||
             (options.sharing == Sharing::kAuto && decision.saves_us <= decision.costs_us)) {
    decision.reason = Reason::kMergeCostsMore;
  }
  return decision;
}

void SharingDecider::find_seen(const RowOrder& order) {
  const size_t sequences = order.row_at.size() - 1;
  seen_of_seq_.resize(sequences);
  for (size_t i = 0; i < sequences; ++i) {
    seen_of_seq_[i] = order.seen(order.row_at[i], order.row_at[i + 1]);
  }
}

SharingDecider::Seeing SharingDecider::find_seeing(const Context& context, const Segment& below,
                                                   const Segment& segment) const {
  const auto& [forest, order, cost, options] = context;
  Seeing seeing;
  for (int32_t seq = below.seq_begin; seq < below.seq_end; ++seq) {
    const int32_t rows = order.row_at[seq + 1] - order.row_at[seq];
    if (rows == 0 || visible_tokens(segment, seen_of_seq_[seq]) == 0) continue;
    ++seeing.sequences;
    if (visible_tokens(below, seen_of_seq_[seq]) > 0) continue;
    ++seeing.not_below.count;
    seeing.not_below.compute_us += cost.compute_us(cost.packed(rows));
  }
  return seeing;
}

/// Bottom up: what the rows under each segment see, and who would read its tokens if it were not
/// shared; a child that is worth sharing by itself counts as one reader.
void SharingDecider::survey(const Context& context) {
  const auto& [forest, order, cost, options] = context;
  const auto segments = forest.segments();
  constexpr VisibleRange kNothing{std::numeric_limits<int32_t>::max(), 0};
  seen_.assign(segments.size(), kNothing);
  readers_.assign(segments.size(), Readers{});
  seen_by_.assign(segments.size(), 0);
  if (order.drops_tokens) find_seen(order);
  for (auto i = static_cast<int32_t>(segments.size()) - 1; i >= 0; --i) {
    const Segment& s = segments[i];
    Readers& readers = readers_[i];
    const auto widen = [](VisibleRange& all, VisibleRange seen) {
      if (seen.begin >= seen.end) return;
      all.begin = std::min(all.begin, seen.begin);
      all.end = std::max(all.end, seen.end);
    };
    for (int32_t seq = s.seq_begin; seq < s.seq_own_end; ++seq) {
      const int32_t rows = order.row_at[seq + 1] - order.row_at[seq];
      if (rows == 0) continue;
      if (!order.drops_tokens || visible_tokens(s, seen_of_seq_[seq]) > 0) {
        ++readers.count;
        ++seen_by_[i];
        readers.compute_us += cost.compute_us(cost.packed(rows));
      }
      widen(seen_[i], order.seen(order.row_at[seq], order.row_at[seq + 1]));
    }
    if (s.parent < 0) continue;
    widen(seen_[s.parent], seen_[i]);
    Readers& above = readers_[s.parent];
    // Of the sequences that hold the parent's tokens, those that have moved past them don't count.
    int32_t seeing = seen_by_[i];
    Readers apart = readers;
    if (order.drops_tokens) {
      const Seeing found = find_seeing(context, s, segments[s.parent]);
      seeing = found.sequences;
      apart.count += found.not_below.count;
      apart.compute_us += found.not_below.compute_us;
    }
    seen_by_[s.parent] += seeing;
    if (seeing == 0) continue;
    if (readers.count > 1 && weigh(context, i, s.token_begin, true).reason == Reason::kShared) {
      const int32_t rows = order.row_at[s.seq_end] - order.row_at[s.seq_begin];
      ++above.count;
      above.compute_us += cost.compute_us(cost.packed(rows));
    } else {
      const int32_t count = order.drops_tokens ? std::min(seeing, apart.count) : apart.count;
      above.count += count;
      above.compute_us +=
          count == apart.count ? apart.compute_us : apart.compute_us * count / apart.count;
    }
  }
}

/// Top down, so that what an ancestor leaves unshared counts as part of the segment.
void SharingDecider::decide(const Forest& forest, const RowOrder& order, const CostModel& cost,
                            const PlanOptions& options, std::vector<Decision>& decisions) {
  const Context context{forest, order, cost, options};
  const auto segments = forest.segments();
  survey(context);
  shared_.assign(segments.size(), 0);
  below_shared_.assign(segments.size(), 0);
  start_.assign(segments.size(), 0);
  decisions.clear();
  for (int32_t i = 0; i < static_cast<int32_t>(segments.size()); ++i) {
    const int32_t parent = segments[i].parent;
    if (parent >= 0) {
      below_shared_[i] = shared_[parent] | below_shared_[parent];
      start_[i] =
          shared_[parent] ? shared_end(segments[parent].token_end, options) : start_[parent];
    }
    if (segments[i].sequences() < 2) continue;
    decisions.push_back(weigh(context, i, start_[i], below_shared_[i] != 0));
    shared_[i] = decisions.back().reason == Reason::kShared;
  }
}

int64_t SharingDecider::unique_bytes(const Forest& forest, const CostModel& cost) const {
  int64_t tokens = 0;
  for (size_t i = 0; i < forest.segments().size(); ++i) {
    tokens += visible_tokens(forest.segments()[i], seen_[i]);
  }
  return tokens * cost.token_bytes();
}

/// Calls `add` with the bytes of each segment that is read more than once, and how often again.
template <class Add>
void SharingDecider::each_read_again(const Forest& forest, const CostModel& cost, bool sharing,
                                     const Add& add) const {
  for (size_t i = 0; i < forest.segments().size(); ++i) {
    const Segment& s = forest.segments()[i];
    if (seen_by_[i] < 2 || (sharing && shared_[i])) continue;
    const int32_t readers = sharing ? readers_[i].count : seen_by_[i];
    add(visible_tokens(s, seen_[i]) * cost.token_bytes(), std::max(0, readers - 1));
  }
}

int64_t SharingDecider::memory_bytes(const Forest& forest, const CostModel& cost,
                                     bool sharing) const {
  int64_t all = unique_bytes(forest, cost);
  each_read_again(forest, cost, sharing, [&](int64_t bytes, int64_t again) {
    if (!cost.is_cached(bytes)) all += again * bytes;
  });
  return all;
}

double SharingDecider::memory_us(const Forest& forest, const CostModel& cost, bool sharing) const {
  double us = cost.dram_us(static_cast<double>(unique_bytes(forest, cost)));
  each_read_again(forest, cost, sharing, [&](int64_t bytes, int64_t again) {
    us += cost.again_us(static_cast<double>(again * bytes), bytes);
  });
  return us;
}

void list_runs(const Forest& forest, const RowOrder& order, std::span<const uint8_t> shared,
               const PlanOptions& options, std::vector<int32_t>& scratch, std::vector<Run>& runs) {
  const auto segments = forest.segments();
  const auto sequences = forest.order();
  // By segment: the first token that its children read themselves, and the run above them.
  scratch.resize(2 * segments.size());
  int32_t* child_start = scratch.data();
  int32_t* child_run = scratch.data() + segments.size();
  runs.clear();
  const auto add = [&](int32_t seq_begin, int32_t seq_end, int32_t token_begin, int32_t token_end,
                       int32_t sequence, int32_t parent) {
    const int32_t row_begin = order.row_at[seq_begin];
    const int32_t row_end = order.row_at[seq_end];
    if (row_begin == row_end || token_begin >= token_end) return parent;
    runs.push_back({row_begin, row_end, token_begin, token_end, sequence, parent});
    return static_cast<int32_t>(runs.size()) - 1;
  };
  for (size_t i = 0; i < segments.size(); ++i) {
    const Segment& segment = segments[i];
    int32_t start = segment.parent < 0 ? 0 : child_start[segment.parent];
    int32_t run = segment.parent < 0 ? -1 : child_run[segment.parent];
    const bool read_once = !shared.empty() && shared[i];
    if (read_once) {
      const int32_t end = shared_end(segment.token_end, options);
      run = add(segment.seq_begin, segment.seq_end, start, end, segment.sequence, run);
      start = end;
    }
    child_start[i] = start;
    child_run[i] = run;
    for (int32_t s = segment.seq_begin; s < segment.seq_own_end; ++s) {
      add(s, s + 1, start, forest.kv_len()[sequences[s]], sequences[s], run);
    }
  }
}

}  // namespace pando
