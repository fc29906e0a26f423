#include "plan/schedule.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/check.h"

namespace pando::cuda {
namespace {

constexpr int64_t kMostSlots = int64_t{1} << 30;   ///< of a list
constexpr int64_t kMostMerges = int64_t{1} << 22;  ///< so that the kernel's job numbers fit 32 bits

/// Where a run of `tokens` may start, so that most of its boxes are whole.
int32_t run_alignment(int32_t tokens) {
  if (tokens > 16) return 64;
  return tokens > 8 ? 16 : 8;
}

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

void Scheduler::build(const Forest& forest, const RowOrder& order, std::span<const pando::Run> runs,
                      int32_t kv_heads, int32_t group, int32_t thread_blocks,
                      const ScheduleCost& cost) {
  const auto packed_rows = static_cast<int32_t>(order.rows.size()) * group;
  const Context context{
      .forest = forest,
      .order = order,
      .runs = runs,
      .kv_heads = kv_heads,
      .group = group,
      .packed_rows = packed_rows,
      .blocks = static_cast<int32_t>(round_up(packed_rows, kBlockRows) / kBlockRows)};
  if (int64_t{context.blocks} * kv_heads > kMostMerges) {
    fail(ErrorCode::kUnsupported,
         "batch: got {} packed rows at {} kv heads, the CUDA backend supports {} blocks of 64 rows",
         packed_rows, kv_heads, kMostMerges);
  }
  make_lists(context);
  cut(kv_heads, thread_blocks, cost);
  list_units(thread_blocks);
  end_blocks(context);
  lay_out(context, thread_blocks);
}

/// Deals the runs to pairs of blocks and, where they cover only one more, to single blocks. The
/// key of a pair's list is its first block, that of a single block's list comes after all of those.
void Scheduler::make_lists(const Context& context) {
  const auto deal = [&](auto&& give) {
    for (int32_t i = 0; i < static_cast<int32_t>(context.runs.size()); ++i) {
      int32_t block = context.runs[i].row_begin * context.group / kBlockRows;
      const int32_t last = (context.runs[i].row_end * context.group - 1) / kBlockRows;
      if (block % 2 == 1 && (last - block) % 2 == 0) give(context.blocks + block++, i);
      for (; block + 1 <= last; block += 2) give(block, i);
      if (block == last) give(context.blocks + block, i);
    }
  };
  const int32_t keys = 2 * context.blocks;
  member_at_.assign(keys + 2, 0);
  deal([&](int32_t key, int32_t) { ++member_at_[key + 2]; });
  for (int32_t key = 0; key < keys; ++key) member_at_[key + 2] += member_at_[key + 1];
  members_.resize(member_at_.back());
  deal([&](int32_t key, int32_t run) { members_[member_at_[key + 1]++] = run; });

  lists_.clear();
  runs_.clear();
  kv_tokens_ = 0;
  for (int32_t key = 0; key < keys; ++key) {
    const bool wide = key < context.blocks;
    const std::span members(members_.data() + member_at_[key],
                            members_.data() + member_at_[key + 1]);
    if (members.empty()) continue;
    add_list(context, wide ? key : key - context.blocks, wide ? 2 : 1, members);
  }
}

void Scheduler::add_list(const Context& context, int32_t block, int32_t blocks,
                         std::span<const int32_t> members) {
  List list{block, blocks, static_cast<int32_t>(runs_.size()), 0, 0};
  int64_t slot = 0;
  for (const int32_t member : members) add_run(context, context.runs[member], list, slot);
  if (slot > kMostSlots) {
    fail(ErrorCode::kUnsupported,
         "batch: got {} tokens under one block of rows, the CUDA backend supports {}", slot,
         kMostSlots);
  }
  list.run_end = static_cast<int32_t>(runs_.size());
  list.slots = static_cast<int32_t>(slot);
  if (list.slots == 0) return;
  lists_.push_back(list);
}

/// Appends what the list's rows see of a run, and nothing that none of them sees: V of such a token
/// may be NaN. `slot` is the end of the list so far.
void Scheduler::add_run(const Context& context, const pando::Run& run, const List& list,
                        int64_t& slot) {
  const int32_t group = context.group;
  const int32_t first = list.block * kBlockRows;
  const int32_t present = std::min(list.blocks * kBlockRows, context.packed_rows - first);
  const int32_t row_begin = std::max(0, run.row_begin * group - first);
  const int32_t row_end = std::min(present, run.row_end * group - first);
  VisibleRange all{0, std::numeric_limits<int32_t>::max()};
  seen_.clear();
  for (int32_t r = (first + row_begin) / group; r <= (first + row_end - 1) / group; ++r) {
    const PlanRow& row = context.order.rows[r];
    all.begin = std::max(all.begin, row.visible_begin);
    all.end = std::min(all.end, row.visible_end);
    const VisibleRange part{std::max(run.token_begin, row.visible_begin),
                            std::min(run.token_end, row.visible_end)};
    if (part.begin >= part.end) continue;
    if (!seen_.empty() && seen_.back().begin <= part.begin && part.begin <= seen_.back().end) {
      seen_.back().end = std::max(seen_.back().end, part.end);
    } else {
      seen_.push_back(part);
    }
  }
  std::ranges::sort(seen_, {}, &VisibleRange::begin);
  const auto add = [&](int32_t begin, int32_t end) {
    const bool plain = all.begin <= begin && end <= all.end;
    const bool full = plain && row_begin == 0 && row_end == present;
    slot = round_up(slot, run_alignment(end - begin));
    runs_.push_back(
        {.slot_begin = static_cast<int32_t>(slot),
         .token_begin = begin,
         .token_end = end,
         .page_offset = context.forest.page_indptr()[run.sequence],
         .rows = row_begin | row_end << 8 | (full ? Run::kFull : 0) | (plain ? Run::kPlain : 0),
         .reserved = {}});
    slot += round_up(end - begin, 8);
    kv_tokens_ += int64_t{end - begin} * context.kv_heads;
  };
  for (size_t i = 0; i < seen_.size();) {
    int32_t begin = seen_[i].begin;
    int32_t end = seen_[i].end;
    for (++i; i < seen_.size() && seen_[i].begin <= end; ++i) end = std::max(end, seen_[i].end);
    // A box of 8 tokens must not cross a page: what comes before a multiple of 8 is a run by
    // itself.
    if (const int32_t next = begin / 8 * 8 + 8; begin % 8 != 0 && next < end) {
      add(begin, next);
      begin = next;
    }
    add(begin, end);
  }
}

/// Cuts the lists, wide ones first, so that every thread block gets the same predicted time.
void Scheduler::cut(int32_t kv_heads, int32_t thread_blocks, const ScheduleCost& cost) {
  const auto tile_us = [&](const List& list) {
    return list.blocks == 2 ? cost.wide_tile_us : cost.narrow_tile_us;
  };
  double total_us = 0;
  for (const List& list : lists_) {
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
  pieces_.clear();
  const auto deal = [&](int32_t index, int32_t kv_head) {
    const List& list = lists_[index];
    const double tile = tile_us(list);
    for (int32_t slot = 0; slot < list.slots;) {
      const int32_t tiles = list.tiles_from(slot);
      const double all_us = cost.unit_us + tile * tiles;
      if (all_us <= left_us + 0.5 * tile || thread_block == thread_blocks - 1) {
        pieces_.push_back({index, kv_head, slot, list.slots, thread_block});
        left_us -= all_us;
        slot = list.slots;
        if (left_us < 0.25 * tile && thread_block < thread_blocks - 1) next_thread_block();
        continue;
      }
      const auto fit = static_cast<int32_t>(std::floor((left_us - cost.unit_us) / tile + 0.5));
      const int32_t taken = std::min(fit, tiles - 1);
      if (taken >= 1) {
        const int32_t end = slot + taken * kTileSlots;
        pieces_.push_back({index, kv_head, slot, end, thread_block});
        left_us -= cost.unit_us + taken * tile;
        slot = end;
      }
      next_thread_block();
    }
  };
  for (const int32_t blocks : {2, 1}) {
    for (int32_t head = 0; head < kv_heads; ++head) {
      for (int32_t i = 0; i < static_cast<int32_t>(lists_.size()); ++i) {
        if (lists_[i].blocks == blocks) deal(i, head);
      }
    }
  }
}

void Scheduler::list_units(int32_t thread_blocks) {
  units_.clear();
  cta_begin_.assign(thread_blocks + 1, 0);
  for (const Piece& piece : pieces_) {
    const List& list = lists_[piece.list];
    int32_t run = list.run_begin;
    while (run + 1 < list.run_end && runs_[run + 1].slot_begin <= piece.slot_begin) ++run;
    units_.push_back({.block = list.block,
                      .blocks = list.blocks,
                      .kv_head = piece.kv_head,
                      .slot_begin = piece.slot_begin,
                      .slot_end = piece.slot_end,
                      .run_begin = run,
                      .run_end = list.run_end,
                      .reserved = 0,
                      .ending = {}});
    ++cta_begin_[piece.thread_block + 1];
  }
  for (int32_t i = 0; i < thread_blocks; ++i) cta_begin_[i + 1] += cta_begin_[i];
}

/// Numbers the partials of blocks with several sources, in the order of their units.
void Scheduler::end_blocks(const Context& context) {
  const int32_t kv_heads = context.kv_heads;
  const size_t ends = static_cast<size_t>(context.blocks) * kv_heads;
  const auto of_each_half = [&](auto&& visit) {
    for (Unit& unit : units_) {
      for (int32_t half = 0; half < unit.blocks; ++half) {
        visit(unit.ending[half], static_cast<size_t>(unit.block + half) * kv_heads + unit.kv_head);
      }
    }
  };
  sources_.assign(ends, 0);
  of_each_half([&](Ending&, size_t i) { ++sources_[i]; });
  first_.resize(ends);
  merges_.clear();
  int64_t partial_rows = 0;
  for (size_t i = 0; i < ends; ++i) {
    first_[i] = static_cast<int32_t>(partial_rows);
    if (sources_[i] == 1) continue;
    merges_.push_back({static_cast<int32_t>(i) / kv_heads, static_cast<int32_t>(i) % kv_heads,
                       first_[i], sources_[i]});
    partial_rows += int64_t{sources_[i]} * kBlockRows;
    if (partial_rows > std::numeric_limits<int32_t>::max()) {
      fail(ErrorCode::kUnsupported, "batch: the plan needs more than 2^31 - 1 partial rows");
    }
  }
  header_.partial_rows = static_cast<int32_t>(partial_rows);
  of_each_half([&](Ending& ending, size_t i) { ending = {0, first_[i], sources_[i], 0}; });
  sources_.assign(ends, 0);
  of_each_half([&](Ending& ending, size_t i) {
    if (ending.sources == 1) {
      ending.first = 0;
    } else {
      ending.partial = ending.first + sources_[i]++ * kBlockRows;
    }
  });
}

void Scheduler::lay_out(const Context& context, int32_t thread_blocks) {
  header_.thread_blocks = thread_blocks;
  header_.packed_rows = context.packed_rows;
  header_.units = static_cast<int32_t>(units_.size());
  header_.runs = static_cast<int32_t>(runs_.size());
  header_.merges = static_cast<int32_t>(merges_.size());
  header_.rows = static_cast<int32_t>(context.order.rows.size());
  const auto section_bytes = [](const auto& entries) {
    return round_up(static_cast<int64_t>(entries.size() * sizeof(entries[0])),
                    ScheduleHeader::kAlignment);
  };
  int64_t at = ScheduleHeader::kCtaBeginOffset + section_bytes(cta_begin_);
  const auto place = [&](int64_t& offset, const auto& entries) {
    offset = at;
    at += section_bytes(entries);
  };
  place(header_.units_offset, units_);
  place(header_.runs_offset, runs_);
  place(header_.merges_offset, merges_);
  place(header_.rows_offset, context.order.rows);
  header_.total_bytes = at;
}

void Scheduler::write(const RowOrder& order, std::byte* to) const {
  static_assert(sizeof(Row) == sizeof(PlanRow));
  std::memset(to, 0, header_.total_bytes);
  std::memcpy(to, &header_, sizeof(header_));
  const auto copy = [to](int64_t offset, const auto& entries) {
    if (!entries.empty()) {
      std::memcpy(to + offset, entries.data(), entries.size() * sizeof(entries[0]));
    }
  };
  copy(ScheduleHeader::kCtaBeginOffset, cta_begin_);
  copy(header_.units_offset, units_);
  copy(header_.runs_offset, runs_);
  copy(header_.merges_offset, merges_);
  copy(header_.rows_offset, order.rows);
}

}  // namespace pando::cuda
