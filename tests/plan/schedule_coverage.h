// Does the schedule of a plan for CUDA compute every (query row, visible position, head) exactly
// once, and is every partial row written once and merged once?
#pragma once

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/mask.h"
#include "pando/batch.h"
#include "plan/schedule_reader.h"

namespace pando::testing {

class ScheduleChecker {
 public:
  ScheduleChecker(const BatchView& batch, const Plan& plan)
      : batch_(batch), plan_(plan), reader_(plan), kv_heads_(plan.header().kv_heads) {}

  std::string problem() {
    const DecodedSchedule& s = reader_.decoded();
    if (!s.problem.empty()) return s.problem;
    if (s.thread_blocks != plan_.header().workers) return "not one share for each thread block";
    if (s.partial_rows != plan_.header().partial_rows) return "partial rows";
    if (!std::ranges::equal(s.rows, plan_.rows(), [](const PlanRow& a, const PlanRow& b) {
          return a.q_row == b.q_row && a.visible_begin == b.visible_begin &&
                 a.visible_end == b.visible_end && a.tree_begin == b.tree_begin &&
                 a.tree_mask == b.tree_mask;
        })) {
      return "the schedule has other rows than the plan";
    }
    ends_ = static_cast<int64_t>(s.rows.size()) * plan_.group() * kv_heads_;
    if (std::string text = check_reads(s); !text.empty()) return text;
    return check_ends(s);
  }

 private:
  int64_t place(int32_t packed, int32_t kv_head) const {
    return int64_t{packed} * kv_heads_ + kv_head;
  }

  static bool sees(const PlanRow& row, int32_t position) {
    return sees_position(row.visible_begin, row.visible_end, row.tree_begin, row.tree_mask,
                         position);
  }

  std::string check_reads(const DecodedSchedule& s) {
    std::vector<int32_t> sequence_of(plan_.rows().size());
    for (int32_t b = 0; b < batch_.sequences(); ++b) {
      for (int32_t r = batch_.q_indptr[b]; r < batch_.q_indptr[b + 1]; ++r) sequence_of[r] = b;
    }
    std::vector<std::vector<std::pair<int32_t, int32_t>>> seen(ends_);
    units_.resize(ends_);
    for (const ScheduledRead& read : s.reads) {
      if (std::string text = check_somebody_sees(read); !text.empty()) return text;
      for (int32_t p = read.packed_begin; p < read.packed_end; ++p) {
        const PlanRow& row = plan_.rows()[p / plan_.group()];
        if (read.unmasked &&
            (row.visible_begin > read.token_begin || row.tree_begin < read.token_end)) {
          return fmt::format("row {} does not see all that is read without a mask", row.q_row);
        }
        const int32_t begin = std::max(read.token_begin, row.visible_begin);
        const int32_t end = std::min(read.token_end, row.visible_end);
        if (begin >= end) continue;
        const int32_t own = batch_.page_indptr[sequence_of[row.q_row]];
        for (int32_t page = begin / batch_.page_tokens; page <= (end - 1) / batch_.page_tokens;
             ++page) {
          if (batch_.page_ids[read.page_offset + page] != batch_.page_ids[own + page]) {
            return fmt::format("row {} is given page {} of another sequence", row.q_row, page);
          }
        }
        seen[place(p, read.kv_head)].emplace_back(begin, end);
        units_[place(p, read.kv_head)].push_back(read.unit);
      }
    }
    for (int64_t i = 0; i < ends_; ++i) {
      const PlanRow& row = plan_.rows()[i / kv_heads_ / plan_.group()];
      std::ranges::sort(seen[i]);
      int32_t next = row.visible_begin;
      const auto is_missing = [&](int32_t until) {
        while (next < until && !sees(row, next)) ++next;
        return next < until;
      };
      for (const auto& [begin, end] : seen[i]) {
        if (is_missing(begin) || begin < next) {
          return fmt::format("row {}: {} comes after {}", row.q_row, begin, next);
        }
        next = end;
      }
      if (is_missing(row.visible_end)) {
        return fmt::format("row {}: {} is missing", row.q_row, next);
      }
    }
    return "";
  }

  /// Memory that no row sees may hold NaN, which weights of 0 do not stop.
  std::string check_somebody_sees(const ScheduledRead& read) {
    std::vector<std::pair<int32_t, int32_t>> ranges;
    for (int32_t r = read.packed_begin / plan_.group(); r * plan_.group() < read.packed_end; ++r) {
      const PlanRow& row = plan_.rows()[r];
      ranges.emplace_back(row.visible_begin, row.tree_begin);
      for (int32_t t = row.tree_begin; t < row.visible_end; ++t) {
        if (sees(row, t)) ranges.emplace_back(t, t + 1);
      }
    }
    std::ranges::sort(ranges);
    int32_t next = read.token_begin;
    for (const auto& [begin, end] : ranges) {
      if (begin < end && begin <= next) next = std::max(next, end);
    }
    return next >= read.token_end ? "" : fmt::format("position {} is read, but not seen", next);
  }

  /// Every end is written by one unit, or by one merge of exactly the partials written for it, and
  /// whoever holds something that it sees has a part in that. Of a batch-invariant plan those are
  /// left out of which the unit holds nothing that the row sees.
  std::string check_ends(const DecodedSchedule& s) {
    std::vector<int> to_out(ends_);
    std::vector<std::vector<int64_t>> partials(ends_);
    std::vector<int> written(s.partial_rows), merged(s.partial_rows);
    for (const ScheduledMerge& merge : s.merges) {
      for (const int64_t partial : merge.partials) ++merged.at(partial);
    }
    std::vector<std::vector<int32_t>> parts(ends_);  // units
    std::vector<int32_t> writers(ends_, -1);         // to out
    for (const ScheduledWrite& write : s.writes) {
      const int64_t i = place(write.packed, write.kv_head);
      if (write.partial < 0) writers[i] = write.unit;
      parts[i].push_back(write.unit);
      if (plan_.header().batch_invariant != 0 && write.partial >= 0 &&
          merged.at(write.partial) == 0 && std::ranges::count(units_[i], write.unit) == 0) {
        continue;
      }
      if (write.partial < 0) {
        ++to_out[i];
      } else {
        ++written.at(write.partial);
        partials[i].push_back(write.partial);
      }
    }
    for (const ScheduledMerge& merge : s.merges) {
      const int64_t i = place(merge.packed, merge.kv_head);
      ++to_out[i];
      std::vector<int64_t> theirs = merge.partials;
      std::ranges::sort(theirs);
      std::ranges::sort(partials[i]);
      if (partials[i] != theirs) {
        return fmt::format("packed row {} merges other partials than its own", merge.packed);
      }
      partials[i].clear();
    }
    for (const ScheduledExchange& exchange : s.exchanges) {
      const int64_t i = place(exchange.packed, exchange.kv_head);
      if (writers[i] != exchange.to || exchange.from == exchange.to) {
        return fmt::format("packed row {} is handed to who does not write it", exchange.packed);
      }
      parts[i].push_back(exchange.from);
    }
    for (int64_t i = 0; i < ends_; ++i) {
      for (const int32_t unit : units_[i]) {
        if (std::ranges::count(parts[i], unit) == 0) {
          return fmt::format("packed row {} lacks what unit {} has seen", i / kv_heads_, unit);
        }
      }
      if (to_out[i] != 1) return fmt::format("packed row {} has {} ends", i / kv_heads_, to_out[i]);
      if (!partials[i].empty()) {
        return fmt::format("a partial of packed row {} is not merged", i / kv_heads_);
      }
    }
    if (std::ranges::any_of(written, [](int n) { return n > 1; })) return "a partial written twice";
    if (written != merged) return "a partial row is not merged as often as it is written";
    return "";
  }

  const BatchView& batch_;
  const Plan& plan_;
  ScheduleReader reader_;
  int32_t kv_heads_;
  int64_t ends_ = 0;                         ///< packed rows x kv heads
  std::vector<std::vector<int32_t>> units_;  ///< by end: those that hold what it sees
};

}  // namespace pando::testing
