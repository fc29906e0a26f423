#include "plan/splitter.h"

#include <cmath>
#include <limits>

#include "core/grouping.h"

namespace pando {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr int32_t kMaxSplitTokens = std::numeric_limits<int32_t>::max();

}  // namespace

void Splitter::split(std::span<const Run> runs, const Context& context) {
  cut_rows(runs, context);
  if (context.options.batch_invariant) {
    apply_cuts(context);
    predict(context);
    return;
  }
  apply(context, kNever);
  predict(context);
  const double even_us = prediction_.us - context.cost.launch_us();
  const double unsplit_us = longest_us_;
  double best_us = prediction_.us;
  double best_longest_us = kNever;
  double applied_us = kNever;
  for (const double parts : {1.0, 2.0, 4.0, 8.0}) {
    if (unsplit_us <= even_us / parts) continue;  // nothing would be split
    applied_us = even_us / parts;
    apply(context, applied_us);
    predict(context);
    if (prediction_.us < 0.99 * best_us) {  // a tie goes to fewer splits
      best_us = prediction_.us;
      best_longest_us = applied_us;
    }
  }
  if (applied_us == best_longest_us) return;
  apply(context, best_longest_us);
  predict(context);
}

void Splitter::cut_rows(std::span<const Run> runs, const Context& context) {
  const CostModel& cost = context.cost;
  alone_.assign(runs.size(), 1);
  for (size_t i = 0; i < runs.size(); ++i) {
    if (runs[i].parent < 0) continue;
    alone_[i] = 0;
    alone_[runs[i].parent] = 0;
  }
  tiles_.clear();
  for (int32_t i = 0; i < static_cast<int32_t>(runs.size()); ++i) {
    const auto begin = static_cast<int32_t>(cost.packed(runs[i].row_begin));
    const auto end = static_cast<int32_t>(cost.packed(runs[i].row_end));
    // Tiles of equal size: a short last one would take another kernel than the rest, and duplicates
    // of a row would differ in their last bits.
    const int64_t rows = end - begin;
    const int64_t tiles = (rows + context.profile.row_tile - 1) / context.profile.row_tile;
    for (int64_t t = 0; t < tiles; ++t) {
      const auto first = static_cast<int32_t>(begin + rows * t / tiles);
      add_tile(runs[i], i, first, static_cast<int32_t>(begin + rows * (t + 1) / tiles), context);
    }
  }
  // Every worker is granted an equal share of what memory delivers. Tiles of one run read it anew.
  double read_tokens = 0;
  double again_us = 0;
  for (size_t t = 0; t < tiles_.size(); ++t) {
    const double tokens = tiles_[t].tokens();
    read_tokens += tokens;
    if (t > 0 && tiles_[t - 1].run == tiles_[t].run) {
      const double bytes = tokens * static_cast<double>(cost.token_bytes());
      again_us += cost.again_us(bytes, static_cast<int64_t>(bytes));
    }
  }
  const double worker_us = (context.memory_us + again_us) * cost.workers();
  share_us_ = read_tokens > 0 ? worker_us / (read_tokens * cost.kv_heads()) : 0;
}

void Splitter::add_tile(const Run& run, int32_t index, int32_t packed_begin, int32_t packed_end,
                        const Context& context) {
  const int32_t group = context.cost.group();
  const auto row_begin = static_cast<int32_t>(row_of_packed(packed_begin, group));
  const auto row_end = static_cast<int32_t>(row_of_packed(packed_end - 1, group)) + 1;
  int32_t all_begin = 0;
  int32_t all_end = std::numeric_limits<int32_t>::max();
  for (int32_t r = row_begin; r < row_end; ++r) {
    const PlanRow& row = context.order.rows[r];
    all_begin = std::max(all_begin, row.visible_begin);
    all_end = std::min(all_end, row.tree_begin);
  }
  const VisibleRange seen = context.order.seen(row_begin, row_end);
  // Whole pages for the device's page-sized loads; whole kv tiles where bits must not depend on
  // which rows stand together.
  const int32_t step =
      context.options.batch_invariant ? context.profile.kv_tile : context.page_tokens;
  const int32_t begin = std::max(run.token_begin, seen.begin / step * step);
  const int32_t end = std::max(begin, std::min(run.token_end, seen.end));
  tiles_.push_back({.run = index,
                    .packed_begin = packed_begin,
                    .packed_end = packed_end,
                    .token_begin = begin,
                    .token_end = end,
                    .all_begin = all_begin,
                    .all_end = all_end,
                    .splits = 0,
                    .split_base = begin,
                    .split_tokens = 0,
                    .alone = alone_[index] != 0,
                    .partial = -1,
                    .token_us = context.cost.compute_us(packed_end - packed_begin)});
}

void Splitter::apply(const Context& context, double longest_us) {
  const int64_t step = std::max(context.profile.kv_tile, context.page_tokens);
  for (Tile& tile : tiles_) {
    const int64_t tokens = tile.tokens();
    if (tokens == 0) continue;
    const double unit_us = static_cast<double>(tokens) * std::max(tile.token_us, share_us_);
    tile.splits = 1;
    tile.split_tokens = kMaxSplitTokens;
    if (unit_us <= longest_us) continue;
    const double parts = std::max(1.0, std::ceil(unit_us / longest_us));
    const auto per_split = static_cast<int64_t>(std::ceil(static_cast<double>(tokens) / parts));
    const int64_t split_tokens = (per_split + step - 1) / step * step;
    tile.splits = static_cast<int32_t>((tokens + split_tokens - 1) / split_tokens);
    tile.split_tokens = static_cast<int32_t>(std::min<int64_t>(split_tokens, kMaxSplitTokens));
  }
}

void Splitter::apply_cuts(const Context& context) {
  const int32_t cut = context.options.cut_tokens;
  for (Tile& tile : tiles_) {
    if (tile.tokens() == 0) continue;
    tile.split_base = tile.token_begin / cut * cut;
    tile.split_tokens = cut;
    tile.splits = (tile.token_end - tile.split_base - 1) / cut + 1;
  }
}

/// Numbers the partial slots, and predicts the time of these tiles with these splits.
void Splitter::predict(const Context& context) {
  const CostModel& cost = context.cost;
  prediction_ = {};
  double total_us = 0;
  longest_us_ = 0;
  double units = 0;
  for (Tile& tile : tiles_) {
    if (tile.splits == 0) continue;
    const double tokens_us = tile.tokens() * std::max(tile.token_us, share_us_);
    const double items_us = tile.splits * cost.item_us();
    total_us += tokens_us + items_us;
    longest_us_ = std::max(longest_us_, (tokens_us + items_us) / tile.splits);
    units += tile.splits;
    tile.partial = -1;
    if (!tile.alone || tile.splits > 1) {
      tile.partial = static_cast<int32_t>(prediction_.partial_slots);
      prediction_.partial_slots += int64_t{tile.rows()} * tile.splits;
    }
    prediction_.kv_bytes += tile.tokens() * cost.token_bytes();
    prediction_.padded_flops += cost.padded_rows(tile.rows()) * tile.tokens() * cost.flops_a_row();
  }
  total_us += static_cast<double>(prediction_.partial_slots) * cost.partial_row_us();
  total_us *= cost.kv_heads();
  units *= cost.kv_heads();
  // Units are taken one after another: with few of them some workers get one more than others.
  const double rounds = std::ceil(units / cost.workers());
  const double even_us = units > 0 ? rounds * total_us / units : 0;
  prediction_.us = cost.launch_us() + std::max(longest_us_, even_us);
}

}  // namespace pando
