// From runs to the kernel's work list: lists over blocks of 64 packed rows, cut into equal shares.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "cuda/kernels/attend/work_list.h"
#include "pando/forest.h"
#include "plan/runs.h"

namespace pando::cuda {

/// Predicted times of one thread block, in microseconds.
struct ScheduleCost {
  double narrow_tile_us = 2.9;  ///< 128 tokens for one block of rows
  double wide_tile_us = 2.9;    ///< 128 tokens for two blocks of rows
  double unit_us = 1.5;
};

struct Schedule {
  std::vector<Unit> units;         ///< in the order of their thread blocks
  std::vector<int32_t> cta_begin;  ///< [thread blocks + 1]
  std::vector<Run> runs;
  std::vector<Merge> merges;
  int32_t partial_rows = 0;
};

/// Every run is read once for each pair of row blocks that it covers; runs that lie in one block
/// are concatenated, so that many short suffixes are one list. The lists are then cut so that each
/// of `thread_blocks` gets the same predicted time, as stream-K does.
Schedule make_schedule(const Forest& forest, const RowOrder& order,
                       std::span<const pando::Run> runs, int32_t kv_heads, int32_t group,
                       int32_t thread_blocks, const ScheduleCost& cost);

}  // namespace pando::cuda
