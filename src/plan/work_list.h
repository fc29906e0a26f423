// From tiles to the flat buffer of a plan: items, merge groups and their sources.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "pando/plan.h"
#include "plan/runs.h"
#include "plan/splitter.h"

namespace pando {

/// Items (longest first) and merges of a list of tiles.
class WorkList {
 public:
  void build(std::span<const Run> runs, std::span<const Tile> tiles,
             std::span<const int32_t> page_indptr, int32_t packed_rows);

  std::span<const WorkItem> items() const { return items_; }
  std::span<const MergeGroup> merges() const { return merges_; }
  std::span<const int32_t> sources() const { return sources_; }

 private:
  void list_items(std::span<const Run> runs, std::span<const Tile> tiles,
                  std::span<const int32_t> page_indptr);
  void list_merges(std::span<const Tile> tiles, int32_t packed_rows);

  std::vector<WorkItem> items_;
  std::vector<WorkItem> unsorted_;
  std::vector<double> item_us_;
  std::vector<MergeGroup> merges_;
  std::vector<int32_t> sources_;
  std::vector<int32_t> covering_;  ///< by run over the current row, outermost first: its tile
};

}  // namespace pando
