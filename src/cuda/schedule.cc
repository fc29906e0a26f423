#include "cuda/schedule.h"

#include <algorithm>
#include <cmath>

namespace pando::cuda {
namespace {

constexpr int32_t kBlockRows = 64;
constexpr int32_t kTileTokens = 128;

/// The concatenated runs of one block of rows, or of two.
struct List {
  int32_t block;
  int32_t blocks;
  int32_t run_begin;
  int32_t run_end;
  int32_t slots;

  int32_t tiles_from(int32_t slot) const { return (slots - slot + kTileTokens - 1) / kTileTokens; }
};

/// A list's slots [slot_begin, slot_end) at one kv head, given to one thread block.
struct Piece {
  int32_t list;
  int32_t kv_head;
  int32_t slot_begin;
  int32_t slot_end;
  int32_t thread_block;
};

/// Where a run of `tokens` may start, so that most of its boxes are whole.
int32_t run_alignment(int32_t tokens) {
  if (tokens > 16) return 64;
  return tokens > 8 ? 16 : 8;
}

class Builder {
 public:
  Builder(const Forest& forest, const RowOrder& order, std::span<const pando::Run> runs,
          int32_t group)
      : forest_(forest), order_(order), runs_(runs), group_(group) {}

  /// Deals the runs to pairs of blocks and, where they cover only one more, to single blocks.
  std::vector<List> make_lists(Schedule& out) {
    const auto packed = static_cast<int32_t>(order_.rows.size()) * group_;
    const int32_t blocks = (packed + kBlockRows - 1) / kBlockRows;
    std::vector<std::vector<int32_t>> wide(blocks), narrow(blocks);
    for (int32_t i = 0; i < static_cast<int32_t>(runs_.size()); ++i) {
      int32_t block = runs_[i].row_begin * group_ / kBlockRows;
      const int32_t last = (runs_[i].row_end * group_ - 1) / kBlockRows;
      if (block % 2 == 1 && (last - block) % 2 == 0) narrow[block++].push_back(i);
      for (; block + 1 <= last; block += 2) wide[block].push_back(i);
      if (block == last) narrow[block].push_back(i);
    }
    std::vector<List> lists;
    for (int32_t b = 0; b < blocks; ++b) add_list(b, 2, wide[b], lists, out);
    for (int32_t b = 0; b < blocks; ++b) add_list(b, 1, narrow[b], lists, out);
    return lists;
  }

 private:
  void add_list(int32_t block, int32_t blocks, const std::vector<int32_t>& members,
                std::vector<List>& lists, Schedule& out) {
    if (members.empty()) return;
    List list{block, blocks, static_cast<int32_t>(out.runs.size()), 0, 0};
    int32_t slot = 0;
    for (const int32_t member : members) {
      const pando::Run& run = runs_[member];
      const int32_t tokens = run.token_end - run.token_begin;
      const int32_t alignment = run_alignment(tokens);
      slot = (slot + alignment - 1) / alignment * alignment;
      const int32_t first = block * kBlockRows;
      const int32_t row_begin = std::max(0, run.row_begin * group_ - first);
      const int32_t row_end = std::min(blocks * kBlockRows, run.row_end * group_ - first);
      const auto packed = static_cast<int32_t>(order_.rows.size()) * group_;
      const int32_t present = std::min(blocks * kBlockRows, packed - first);
      const bool plain = sees_all(run, first, row_begin, row_end);
      const bool full = plain && row_begin == 0 && row_end == present;
      const Run placed{
          .slot_begin = slot,
          .token_begin = run.token_begin,
          .token_end = run.token_end,
          .page_offset = forest_.page_indptr()[run.sequence],
          .rows = row_begin | row_end << 8 | (full ? Run::kFull : 0) | (plain ? Run::kPlain : 0),
          .reserved = {}};
      slot += (tokens + 7) / 8 * 8;
      out.runs.push_back(placed);
    }
    list.run_end = static_cast<int32_t>(out.runs.size());
    list.slots = slot;
    lists.push_back(list);
  }

  bool sees_all(const pando::Run& run, int32_t first, int32_t row_begin, int32_t row_end) const {
    for (int32_t row = row_begin; row < row_end; ++row) {
      const PlanRow& r = order_.rows[(first + row) / group_];
      if (r.visible_begin > run.token_begin || r.visible_end < run.token_end) return false;
    }
    return true;
  }

  const Forest& forest_;
  const RowOrder& order_;
  std::span<const pando::Run> runs_;
  int32_t group_;
};

/// Cuts the lists, wide ones first, so that every thread block gets the same predicted time.
std::vector<Piece> cut(const std::vector<List>& lists, int32_t kv_heads, int32_t thread_blocks,
                       const ScheduleCost& cost) {
  const auto tile_us = [&](const List& list) {
    return list.blocks == 2 ? cost.wide_tile_us : cost.narrow_tile_us;
  };
  double total_us = 0;
  for (const List& list : lists) {
    total_us += kv_heads * (cost.unit_us + tile_us(list) * list.tiles_from(0));
  }
  // Each thread block starts with the rest of a list: one more unit than there are lists.
  const double share_us = total_us / thread_blocks + cost.unit_us;
  double left_us = share_us;
  int32_t thread_block = 0;
  const auto next_thread_block = [&] {
    ++thread_block;
    left_us += share_us;
  };
  std::vector<Piece> pieces;
  const auto deal = [&](int32_t index, int32_t kv_head) {
    const List& list = lists[index];
    const double tile = tile_us(list);
    for (int32_t slot = 0; slot < list.slots;) {
      const int32_t tiles = list.tiles_from(slot);
      const double all_us = cost.unit_us + tile * tiles;
      if (all_us <= left_us + 0.5 * tile || thread_block == thread_blocks - 1) {
        pieces.push_back({index, kv_head, slot, list.slots, thread_block});
        left_us -= all_us;
        slot = list.slots;
        if (left_us < 0.25 * tile && thread_block < thread_blocks - 1) next_thread_block();
        continue;
      }
      const auto fit = static_cast<int32_t>(std::floor((left_us - cost.unit_us) / tile + 0.5));
      const int32_t taken = std::min(fit, tiles - 1);
      if (taken >= 1) {
        const int32_t end = slot + taken * kTileTokens;
        pieces.push_back({index, kv_head, slot, end, thread_block});
        left_us -= cost.unit_us + taken * tile;
        slot = end;
      }
      next_thread_block();
    }
  };
  for (const int32_t blocks : {2, 1}) {
    for (int32_t head = 0; head < kv_heads; ++head) {
      for (int32_t i = 0; i < static_cast<int32_t>(lists.size()); ++i) {
        if (lists[i].blocks == blocks) deal(i, head);
      }
    }
  }
  return pieces;
}

/// One source of a (block, kv head): half `half` of piece `piece`.
struct Source {
  int32_t piece;
  int32_t half;
};

void end_blocks(const std::vector<List>& lists, const std::vector<Piece>& pieces, int32_t kv_heads,
                int32_t blocks, Schedule& out) {
  std::vector<std::vector<Source>> sources(static_cast<size_t>(blocks) * kv_heads);
  for (int32_t p = 0; p < static_cast<int32_t>(pieces.size()); ++p) {
    const List& list = lists[pieces[p].list];
    for (int32_t half = 0; half < list.blocks; ++half) {
      sources[(list.block + half) * kv_heads + pieces[p].kv_head].push_back({p, half});
    }
  }
  for (size_t i = 0; i < sources.size(); ++i) {
    const auto count = static_cast<int32_t>(sources[i].size());
    const int32_t first = out.partial_rows;
    for (int32_t s = 0; s < count; ++s) {
      Ending& ending = out.units[sources[i][s].piece].ending[sources[i][s].half];
      ending = count == 1 ? Ending{0, 0, 1, 0} : Ending{first + s * kBlockRows, first, count, 0};
    }
    if (count < 2) continue;
    out.merges.push_back(
        {static_cast<int32_t>(i) / kv_heads, static_cast<int32_t>(i) % kv_heads, first, count});
    out.partial_rows += count * kBlockRows;
  }
}

}  // namespace

Schedule make_schedule(const Forest& forest, const RowOrder& order,
                       std::span<const pando::Run> runs, int32_t kv_heads, int32_t group,
                       int32_t thread_blocks, const ScheduleCost& cost) {
  Schedule out;
  const std::vector<List> lists = Builder(forest, order, runs, group).make_lists(out);
  const std::vector<Piece> pieces = cut(lists, kv_heads, thread_blocks, cost);
  out.cta_begin.assign(thread_blocks + 1, 0);
  for (const Piece& piece : pieces) {
    const List& list = lists[piece.list];
    int32_t run = list.run_begin;
    while (run + 1 < list.run_end && out.runs[run + 1].slot_begin <= piece.slot_begin) ++run;
    out.units.push_back({.block = list.block,
                         .blocks = list.blocks,
                         .kv_head = piece.kv_head,
                         .slot_begin = piece.slot_begin,
                         .slot_end = piece.slot_end,
                         .run_begin = run,
                         .run_end = list.run_end,
                         .reserved = 0,
                         .ending = {}});
    ++out.cta_begin[piece.thread_block + 1];
  }
  for (int32_t i = 0; i < thread_blocks; ++i) out.cta_begin[i + 1] += out.cta_begin[i];
  const auto packed = static_cast<int32_t>(order.rows.size()) * group;
  end_blocks(lists, pieces, kv_heads, (packed + kBlockRows - 1) / kBlockRows, out);
  return out;
}

}  // namespace pando::cuda
