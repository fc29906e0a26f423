// Does a plan compute every (query row, visible position) exactly once, in order, and write it?
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "core/mask.h"
#include "pando/attention.h"
#include "pando/batch.h"
#include "pando/plan.h"
#include "plan/schedule_coverage.h"

namespace pando::testing {

/// What is wrong with `plan` as a plan for `batch`, or "" when nothing is.
class PlanChecker {
 public:
  PlanChecker(const BatchView& batch, const AttentionSpec& spec, const Plan& plan)
      : batch_(batch), spec_(spec), plan_(plan), group_(spec.group()) {}

  std::string problem() {
    if (std::string text = check_rows(); !text.empty()) return text;
    if (plan_.header().backend == Backend::kCuda) return ScheduleChecker(batch_, plan_).problem();
    if (std::string text = check_items(); !text.empty()) return text;
    return check_writers();
  }

 private:
  /// Every query row stands once in plan order, with the visible range of the mask rule.
  std::string check_rows() {
    sequence_of_.assign(batch_.q_indptr.back(), -1);
    std::vector<RowMask> visible(sequence_of_.size());
    for (int32_t b = 0; b < batch_.sequences(); ++b) {
      const int32_t first = batch_.q_indptr[b];
      const int32_t q_len = batch_.q_indptr[b + 1] - first;
      for (int32_t r = 0; r < q_len; ++r) {
        sequence_of_[first + r] = b;
        visible[first + r] = row_mask(spec_, first + r, r, q_len, batch_.kv_len[b]);
      }
    }
    std::vector<int> times(sequence_of_.size());
    for (const PlanRow& row : plan_.rows()) {
      if (row.q_row < 0 || row.q_row >= static_cast<int32_t>(times.size())) return "q_row";
      ++times[row.q_row];
      const VisibleRange range{row.visible_begin, row.visible_end};
      if (!(RowMask{range, row.tree_begin, row.tree_mask} == visible[row.q_row])) {
        return fmt::format("row {} has the wrong mask", row.q_row);
      }
    }
    if (std::ranges::any_of(times, [](int n) { return n != 1; })) return "a row is not there once";
    return "";
  }

  /// Each item reads tokens that all its rows' page tables name alike, and `full` tells the truth.
  std::string check_items() {
    items_of_slot_.assign(plan_.header().partial_slots, -1);
    direct_items_.assign(plan_.rows().size() * group_, -1);
    for (int32_t i = 0; i < static_cast<int32_t>(plan_.items().size()); ++i) {
      const WorkItem& item = plan_.items()[i];
      if (item.packed_end - item.packed_begin > plan_.header().row_tile) return "tile too tall";
      if (item.token_begin >= item.token_end) return "an item without tokens";
      bool full = true;
      for (int32_t p = item.packed_begin; p < item.packed_end; ++p) {
        const PlanRow& row = plan_.rows()[p / group_];
        full &= row.visible_begin <= item.token_begin && item.token_end <= row.tree_begin;
        if (std::string text = check_pages(item, row); !text.empty()) return text;
        int32_t& owner = item.partial < 0 ? direct_items_[p]
                                          : items_of_slot_.at(item.partial + p - item.packed_begin);
        if (owner >= 0) return fmt::format("items {} and {} write the same place", owner, i);
        owner = i;
      }
      if (item.full != int32_t{full}) return fmt::format("item {}: full is {}", i, item.full);
    }
    return "";
  }

  std::string check_pages(const WorkItem& item, const PlanRow& row) {
    const int32_t begin = std::max(item.token_begin, row.visible_begin);
    const int32_t end = std::min(item.token_end, row.visible_end);
    if (begin >= end) return "";
    const int32_t page_tokens = batch_.page_tokens;
    const int32_t own = batch_.page_indptr[sequence_of_[row.q_row]];
    for (int32_t page = begin / page_tokens; page <= (end - 1) / page_tokens; ++page) {
      if (batch_.page_ids[item.page_offset + page] != batch_.page_ids[own + page]) {
        return fmt::format("row {} is given page {} of another sequence", row.q_row, page);
      }
    }
    return "";
  }

  /// Every packed row is written once: by one item, or by one merge of slots in token order.
  std::string check_writers() {
    std::vector<int32_t> merge_of(direct_items_.size(), -1);
    for (int32_t m = 0; m < static_cast<int32_t>(plan_.merges().size()); ++m) {
      const MergeGroup& merge = plan_.merges()[m];
      for (int32_t p = merge.packed_begin; p < merge.packed_end; ++p) {
        if (merge_of.at(p) >= 0) return fmt::format("packed row {} is merged twice", p);
        merge_of[p] = m;
      }
    }
    std::vector<int32_t> reads_of_slot(items_of_slot_.size());
    for (int32_t p = 0; p < static_cast<int32_t>(merge_of.size()); ++p) {
      if ((direct_items_[p] >= 0) == (merge_of[p] >= 0)) {
        return fmt::format("packed row {} is not written exactly once", p);
      }
      std::vector<int32_t> items;
      if (direct_items_[p] >= 0) {
        items.push_back(direct_items_[p]);
      } else {
        const MergeGroup& merge = plan_.merges()[merge_of[p]];
        for (int32_t s = merge.source_begin; s < merge.source_end; ++s) {
          const int32_t slot = plan_.sources()[s] + p - merge.packed_begin;
          const int32_t item = items_of_slot_.at(slot);
          if (item < 0) return fmt::format("slot {} is read but not written", slot);
          if (plan_.items()[item].packed_begin + slot - plan_.items()[item].partial != p) {
            return fmt::format("packed row {} reads the partial of another row", p);
          }
          ++reads_of_slot[slot];
          items.push_back(item);
        }
      }
      if (std::string text = check_tokens(p, items); !text.empty()) return text;
    }
    if (std::ranges::any_of(reads_of_slot, [](int n) { return n != 1; })) {
      return "a partial slot is not read exactly once";
    }
    return "";
  }

  std::string check_tokens(int32_t packed, const std::vector<int32_t>& items) {
    const PlanRow& row = plan_.rows()[packed / group_];
    int32_t next = row.visible_begin;
    for (const int32_t i : items) {
      const int32_t begin = std::max(plan_.items()[i].token_begin, row.visible_begin);
      const int32_t end = std::min(plan_.items()[i].token_end, row.visible_end);
      if (begin >= end) continue;
      if (begin != next) {
        return fmt::format("row {}: position {} comes after {}", row.q_row, begin, next);
      }
      next = end;
    }
    if (next < row.visible_end) {
      return fmt::format("row {}: positions [{}, {}) are missing", row.q_row, next,
                         row.visible_end);
    }
    return "";
  }

  const BatchView& batch_;
  const AttentionSpec& spec_;
  const Plan& plan_;
  int32_t group_;
  std::vector<int32_t> sequence_of_;    // by query row
  std::vector<int32_t> items_of_slot_;  // by partial slot
  std::vector<int32_t> direct_items_;   // by packed row
};

inline std::string plan_problem(const BatchView& batch, const AttentionSpec& spec,
                                const Plan& plan) {
  return PlanChecker(batch, spec, plan).problem();
}

}  // namespace pando::testing
