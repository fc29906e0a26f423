// Decodes the schedule of a plan for CUDA into what its units read, write and merge. The one place
// in the tests that knows the format.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "pando/plan.h"
#include "plan/schedule_format.h"

namespace pando::testing {

/// Packed rows [packed_begin, packed_end) attend to tokens of one page table at one kv head.
struct ScheduledRead {
  int32_t kv_head;
  int32_t packed_begin;
  int32_t packed_end;
  int32_t token_begin;
  int32_t token_end;
  int64_t page_offset;  ///< index in page_ids of the page of position 0
  bool unmasked;        ///< the schedule claims that all these rows see all these tokens
};

/// One packed row at one kv head is written: to out, or to a partial row.
struct ScheduledWrite {
  int32_t kv_head;
  int32_t packed;
  int64_t partial;  ///< -1: to out
};

/// One packed row at one kv head is the merge of these partial rows.
struct ScheduledMerge {
  int32_t kv_head;
  int32_t packed;
  std::vector<int64_t> partials;
};

struct DecodedSchedule {
  std::vector<PlanRow> rows;
  std::vector<ScheduledRead> reads;
  std::vector<ScheduledWrite> writes;
  std::vector<ScheduledMerge> merges;
  int32_t thread_blocks = 0;
  int64_t partial_rows = 0;
  std::string problem;  ///< what the format forbids
};

class ScheduleReader {
 public:
  explicit ScheduleReader(const Plan& plan) : plan_(plan) {
    if (plan.schedule().size() < sizeof(header_)) {
      decoded_.problem = "no schedule";
      return;
    }
    std::memcpy(&header_, plan.schedule().data(), sizeof(header_));
    decoded_.thread_blocks = header_.thread_blocks;
    decoded_.partial_rows = header_.partial_rows;
    for (const auto& row : section<cuda::Row>(header_.rows_offset, header_.rows)) {
      decoded_.rows.push_back({row.q_row, row.visible_begin, row.visible_end});
    }
    read_units();
    read_merges();
  }
  const DecodedSchedule& decoded() const { return decoded_; }

 private:
  template <class Entry>
  std::span<const Entry> section(int64_t offset, int32_t count) const {
    return {reinterpret_cast<const Entry*>(plan_.schedule().data() + offset),
            static_cast<size_t>(count)};
  }

  void read_units() {
    const auto cta_begin =
        section<int32_t>(cuda::ScheduleHeader::kCtaBeginOffset, header_.thread_blocks + 1);
    if (cta_begin.front() != 0 || cta_begin.back() != header_.units ||
        !std::ranges::is_sorted(cta_begin)) {
      decoded_.problem = "the thread blocks do not share out the units";
    }
    for (const auto& unit : section<cuda::Unit>(header_.units_offset, header_.units)) {
      read_runs(unit);
      for (int32_t half = 0; half < unit.blocks; ++half) {
        const cuda::Ending& ending = unit.ending[half];
        const int32_t first = (unit.block + half) * cuda::kBlockRows;
        const int32_t last = std::min(first + cuda::kBlockRows, header_.packed_rows);
        for (int32_t p = first; p < last; ++p) {
          const int64_t partial = ending.sources == 1 ? -1 : ending.partial + int64_t{p} - first;
          decoded_.writes.push_back({unit.kv_head, p, partial});
        }
      }
    }
  }

  void read_runs(const cuda::Unit& unit) {
    const auto runs = section<cuda::Run>(header_.runs_offset, header_.runs);
    const int32_t first = unit.block * cuda::kBlockRows;
    const int32_t present = std::min(unit.blocks * cuda::kBlockRows, header_.packed_rows - first);
    int32_t free_slot = 0;
    for (int32_t r = unit.run_begin; r < unit.run_end; ++r) {
      const cuda::Run& run = runs[r];
      const int32_t row_begin = run.rows & 0xff;
      const int32_t row_end = run.rows >> 8 & 0xff;
      // A box of 8 tokens must not cross a page.
      const int32_t into = run.token_begin % 8;
      if (run.slot_begin % 8 != 0 || (into != 0 && into + run.token_end - run.token_begin > 8)) {
        decoded_.problem = "a run that no box of 8 tokens fits";
      }
      if (run.slot_begin < free_slot && r > unit.run_begin) decoded_.problem = "runs overlap";
      if (row_begin >= row_end || row_end > present) decoded_.problem = "a run without rows";
      free_slot = run.slot_begin + run.token_end - run.token_begin;
      const int32_t begin = std::max(unit.slot_begin, run.slot_begin);
      const int32_t end = std::min(unit.slot_end, free_slot);
      if (begin >= end) continue;
      const bool full = (run.rows & cuda::Run::kFull) != 0;
      if (full && (row_begin != 0 || row_end != present))
        decoded_.problem = "full, but not all rows";
      decoded_.reads.push_back({unit.kv_head, first + row_begin, first + row_end,
                                run.token_begin + begin - run.slot_begin,
                                run.token_begin + end - run.slot_begin, run.page_offset,
                                full || (run.rows & cuda::Run::kPlain) != 0});
    }
  }

  void read_merges() {
    for (const auto& merge : section<cuda::Merge>(header_.merges_offset, header_.merges)) {
      const int32_t first = merge.block * cuda::kBlockRows;
      const int32_t last = std::min(first + cuda::kBlockRows, header_.packed_rows);
      for (int32_t p = first; p < last; ++p) {
        ScheduledMerge row{merge.kv_head, p, {}};
        for (int32_t s = 0; s < merge.sources; ++s) {
          row.partials.push_back(merge.first + int64_t{s} * cuda::kBlockRows + p - first);
        }
        decoded_.merges.push_back(std::move(row));
      }
    }
  }

  const Plan& plan_;
  cuda::ScheduleHeader header_;
  DecodedSchedule decoded_;
};

}  // namespace pando::testing
