// From runs to the kernel's work list: lists over blocks of 64 packed rows, cut into equal shares.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "pando/forest.h"
#include "pando/plan.h"
#include "plan/runs.h"
#include "plan/schedule_format.h"

namespace pando::cuda {

/// Predicted times of one thread block, in microseconds.
struct ScheduleCost {
  double narrow_tile_us = 2.9;  ///< 128 tokens for one block of rows
  double wide_tile_us = 2.9;    ///< 128 tokens for two blocks of rows
  double unit_us = 1.5;
};

/// Makes schedules and keeps its memory, so that replanning stops allocating.
class Scheduler {
 public:
  /// Every run is read once for each pair of row blocks that it covers; runs that lie in one block
  /// are concatenated, so that many short suffixes are one list. The lists are then cut so that
  /// each of `thread_blocks` gets the same predicted time, as stream-K does.
  /// Throws kUnsupported when the batch is larger than the kernel's 32-bit indices.
  void build(const Forest& forest, const RowOrder& order, std::span<const pando::Run> runs,
             int32_t kv_heads, int32_t group, int32_t thread_blocks, const ScheduleCost& cost = {});

  /// Of the schedule that was built last.
  const ScheduleHeader& header() const { return header_; }
  /// Tokens that its units read, counted at each kv head.
  int64_t kv_tokens() const { return kv_tokens_; }
  /// Writes header().total_bytes bytes: all of them, so that equal schedules are equal bytes.
  void write(const RowOrder& order, std::byte* to) const;

 private:
  /// The concatenated runs of one block of rows, or of two.
  struct List {
    int32_t block;
    int32_t blocks;
    int32_t run_begin;
    int32_t run_end;
    int32_t slots;

    int32_t tiles_from(int32_t slot) const { return (slots - slot + kTileSlots - 1) / kTileSlots; }
  };
  /// A list's slots [slot_begin, slot_end) at one kv head, given to one thread block.
  struct Piece {
    int32_t list;
    int32_t kv_head;
    int32_t slot_begin;
    int32_t slot_end;
    int32_t thread_block;
  };
  /// What every step of one build reads.
  struct Context {
    const Forest& forest;
    const RowOrder& order;
    std::span<const pando::Run> runs;
    int32_t kv_heads;
    int32_t group;
    int32_t packed_rows;
    int32_t blocks;
  };

  void make_lists(const Context& context);
  void add_list(const Context& context, int32_t block, int32_t blocks,
                std::span<const int32_t> members);
  void add_run(const Context& context, const pando::Run& run, const List& list, int64_t& slot);
  void cut(int32_t kv_heads, int32_t thread_blocks, const ScheduleCost& cost);
  void list_units(int32_t thread_blocks);
  void end_blocks(const Context& context);
  void lay_out(const Context& context, int32_t thread_blocks);

  std::vector<int32_t> member_at_;  ///< by list key: where its members start
  std::vector<int32_t> members_;    ///< indices of runs, by list
  std::vector<List> lists_;
  std::vector<VisibleRange> seen_;  ///< of a run, by the rows of one list
  std::vector<Piece> pieces_;
  std::vector<int32_t> sources_;  ///< by block and kv head: how many, then how many are numbered
  std::vector<int32_t> first_;    ///< by block and kv head: first row of its partials
  std::vector<Unit> units_;       ///< in the order of their thread blocks
  std::vector<int32_t> cta_begin_;
  std::vector<Run> runs_;
  std::vector<Merge> merges_;
  ScheduleHeader header_;
  int64_t kv_tokens_ = 0;
};

}  // namespace pando::cuda
