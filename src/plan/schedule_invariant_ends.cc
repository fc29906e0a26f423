// Batch-invariant schedules: who computes the units, and where their rows go.
#include <algorithm>
#include <array>
#include <bit>
#include <span>
#include <tuple>

#include "plan/block_rows.h"
#include "plan/schedule.h"

namespace pando::cuda {
namespace {

int32_t cuts_of(const PlanRow& row, int32_t cut_tokens) {
  if (row.visible_begin >= row.visible_end) return 0;
  return (row.visible_end - 1) / cut_tokens - row.visible_begin / cut_tokens + 1;
}

}  // namespace

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
  const auto give_first = [&](double us) {
    const Busy first{busy_[0].until_us + us, busy_[0].thread_block};
    size_t at = 0;
    for (size_t child = 1; child < busy_.size(); child = 2 * at + 1) {
      if (child + 1 < busy_.size() && busy_[child + 1] < busy_[child]) ++child;
      if (first < busy_[child]) break;
      busy_[at] = busy_[child];
      at = child;
    }
    busy_[at] = first;
    return first;
  };
  double last_us = 0;
  for (std::span<const TimedPiece> left(by_time_); !left.empty();) {
    const auto other = std::ranges::find_if(
        left, [&](const TimedPiece& piece) { return piece.tenths != left.front().tenths; });
    const auto alike = left.first(static_cast<size_t>(other - left.begin()));
    left = left.subspan(alike.size());
    for (int32_t head = 0; head < p.kv_heads; ++head) {
      for (const TimedPiece& timed : alike) {
        Piece& piece = out.pieces[head * one_head + timed.piece];
        const Busy taker = give_first(time_us(piece));
        piece.thread_block = taker.thread_block;
        last_us = std::max(last_us, taker.until_us);
      }
    }
  }
  int32_t most_cuts = 0;
  for (const PlanRow& row : p.order.rows)
    most_cuts = std::max(most_cuts, cuts_of(row, p.cut_tokens));
  out.predicted_us = last_us + (most_cuts > 1 ? p.merging_us(most_cuts) : 0);
}

/// By row of a block, how many cuts it sees, and by touch, which rows see something in its cut: the
/// same at every kv head.
void Scheduler::find_sources(const Problem& p, int32_t block) {
  rows_ = {};
  const int32_t present = std::min(kBlockRows, p.packed_rows() - block * kBlockRows);
  std::array<int32_t, kBlockRows> first_cut, cuts;
  for (int32_t r = 0; r < present; ++r) {
    const PlanRow& row = p.order.rows[(block * kBlockRows + r) / p.group];
    cuts[r] = cuts_of(row, p.cut_tokens);
    first_cut[r] = row.visible_begin / p.cut_tokens;
    (cuts[r] == 0   ? rows_.without
     : cuts[r] == 1 ? rows_.with_one
                    : rows_.with_more) |= uint64_t{1} << r;
  }
  holders_.clear();
  for (const Touch& t : touches_[static_cast<size_t>(block) * p.kv_heads]) {
    uint64_t holders = 0;
    for (int32_t r = t.begin; r < t.end; ++r) {
      const int32_t into = t.cut - first_cut[r];
      if (into >= 0 && into < cuts[r]) holders |= uint64_t{1} << r;
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
      sources_.push_back(source_of(touches[i]));
      ++merge.sources;
    }
    merges_.push_back(merge);
  }
}

}  // namespace pando::cuda
