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
  int32_t unit;
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
  int32_t unit;
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

/// A unit hands what it has of one packed row at one kv head over to another, which writes it.
struct ScheduledExchange {
  int32_t from, to;  ///< units
  int32_t kv_head;
  int32_t packed;
};

struct ScheduledUnit {
  int32_t thread_block;
  bool split_first;
  bool narrow;  ///< its thread block takes its units as narrow ones
  int32_t blocks;
  int32_t tiles;
};

struct DecodedSchedule {
  std::vector<PlanRow> rows;
  std::vector<ScheduledUnit> units;
  std::vector<ScheduledRead> reads;
  std::vector<ScheduledWrite> writes;
  std::vector<ScheduledMerge> merges;
  std::vector<ScheduledExchange> exchanges;
  int32_t thread_blocks = 0;
  int64_t partial_rows = 0;
  int32_t one_tile = 0;  ///< thread blocks that have one
  std::string problem;   ///< what the format forbids
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
      decoded_.rows.push_back({row.q_row, row.visible_begin, row.visible_end, row.visible_end, 0});
    }
    const auto trees = section<cuda::TreeRow>(header_.tree_rows_offset, header_.tree_rows);
    for (size_t i = 0; i < trees.size(); ++i) {
      decoded_.rows.at(i).tree_begin = trees[i].begin;
      decoded_.rows.at(i).tree_mask = trees[i].mask;
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
    const auto starts =
        section<cuda::Start>(cuda::ScheduleHeader::kStartsOffset, header_.thread_blocks);
    const auto units = section<cuda::Unit>(header_.units_offset, header_.units);
    int32_t next = 0;
    for (const auto& start : starts) {
      if (start.unit_begin != next || start.unit_end < next || start.unit_end > header_.units) {
        decoded_.problem = "the thread blocks do not share out the units";
        return;
      }
      const auto thread_block = static_cast<int32_t>(&start - starts.data());
      for (; next < start.unit_end; ++next) {
        const cuda::Unit& unit = units[next];
        decoded_.units.push_back({thread_block, unit.split_first != 0, start.narrow != 0,
                                  unit.blocks, unit.whole_tiles + unit.split_tiles});
        if (start.narrow != 0 && !unit.is_narrow()) {
          decoded_.problem = "a narrow thread block has a unit that is not";
        }
      }
      if (start.narrow != 0 && start.unit_begin == start.unit_end) {
        decoded_.problem = "a narrow thread block has no unit";
      }
      const auto has_one_tile = [&](const cuda::Start& s) {
        if (s.unit_end - s.unit_begin != 1) return false;
        const cuda::Unit& unit = units[s.unit_begin];
        return unit.blocks == 1 && unit.whole_tiles == 0 && unit.split_tiles == 1;
      };
      const bool one_tile = header_.tree_rows == 0 && has_one_tile(start) &&
                            (start.exchanged == 0 || has_one_tile(starts[thread_block ^ 1]));
      decoded_.one_tile += one_tile ? 1 : 0;
      if (start.one_tile != (one_tile ? 1 : 0)) {
        decoded_.problem = "a thread block says the wrong thing of whether it has one tile";
      }
      if (start.exchanged != 0) read_exchange(start, starts[thread_block ^ 1], units);
    }
    if (next != header_.units) decoded_.problem = "units without a thread block";
    for (const auto& unit : units) {
      unit_ = static_cast<int32_t>(&unit - units.data());
      read_tiles(unit);
      for (int32_t side = 0; side < unit.blocks; ++side) {
        const cuda::Ending& ending = unit.ending[side];
        const int32_t first = (unit.block + side) * cuda::kBlockRows;
        for (uint32_t r = ending.touched & 255; r < (ending.touched >> 8 & 255); ++r) {
          const bool direct = r >= (ending.direct & 255) && r < (ending.direct >> 8 & 255);
          const int64_t partial = ending.partial + int64_t{r} - (ending.touched & 255);
          const auto packed = static_cast<int32_t>(first + r);
          if (packed >= header_.packed_rows) decoded_.problem = "a unit writes rows that are not";
          decoded_.writes.push_back({unit_, unit.kv_head, packed, direct ? -1 : partial});
        }
      }
    }
  }

  /// What the last unit of a thread block gets of the other one's in its cluster.
  void read_exchange(const cuda::Start& start, const cuda::Start& other,
                     std::span<const cuda::Unit> units) {
    const cuda::Unit& last = units[start.unit_end - 1];
    for (int32_t side = 0; side < last.blocks; ++side) {
      if ((start.exchanged >> side & 1) == 0) continue;
      const uint32_t rows = last.ending[side].direct;
      for (uint32_t r = rows & 255; r < rows >> 8; ++r) {
        decoded_.exchanges.push_back(
            {other.unit_end - 1, start.unit_end - 1, last.kv_head,
             static_cast<int32_t>((last.block + side) * cuda::kBlockRows + r)});
      }
    }
  }

  void read_tiles(const cuda::Unit& unit) {
    const int32_t stride = unit.split_stride();
    if ((unit.whole_end - unit.whole_begin + 1) / 2 != unit.whole_tiles) {
      decoded_.problem = "another number of whole tiles than the halves fill";
    }
    for (int32_t half = unit.whole_begin; half < unit.whole_end; ++half) read_half(unit, half, 3);
    int32_t most = 0;
    for (int32_t side = 0; side < 2; ++side) {
      int32_t tiles = 0;
      for (int32_t half = unit.split_begin[side]; half < unit.split_end[side]; half += stride) {
        read_half(unit, half, unit.blocks == 2 ? 1 << side : 1);
        ++tiles;
      }
      most = std::max(most, tiles);
    }
    if (most != unit.split_tiles) decoded_.problem = "another number of split tiles than halves";
  }

  /// `blocks`: bit i says that the half is attended to by block i of the unit.
  void read_half(const cuda::Unit& unit, int32_t index, int32_t blocks) {
    const auto half = section<cuda::Half>(header_.halves_offset, header_.halves)[index];
    const auto runs = section<cuda::Run>(header_.runs_offset, header_.runs);
    const int32_t first = unit.block * cuda::kBlockRows;
    const int32_t present = std::min(unit.blocks * cuda::kBlockRows, header_.packed_rows - first);
    const int32_t low = (blocks & 1) != 0 ? 0 : cuda::kBlockRows;
    const int32_t high = (blocks & 2) != 0 ? present : std::min(present, cuda::kBlockRows);
    if (half.runs > 8) decoded_.problem = "more runs in a half than eight lanes hold";
    int32_t free_slot = 0;
    for (int32_t r = half.run_begin; r < half.run_begin + half.runs; ++r) {
      const cuda::Run& run = runs[r];
      const auto row_begin = static_cast<int32_t>(run.rows & 0xff);
      const auto row_end = static_cast<int32_t>(run.rows >> 8 & 0xff);
      // A box of 8 tokens, or of a smaller page, must not cross a page.
      const int32_t box = std::min(8, plan_.header().page_tokens);
      const int32_t into = run.token_begin % box;
      if (run.slot_begin % 8 != 0 || (into != 0 && into + run.token_end - run.token_begin > box)) {
        decoded_.problem = "a run that no box of 8 tokens fits";
      }
      if (r > half.run_begin && run.slot_begin < free_slot) decoded_.problem = "runs overlap";
      if (row_begin >= row_end || row_begin < low || row_end > high) {
        decoded_.problem = "a run without rows, or with rows that do not come by";
      }
      free_slot = run.slot_begin + run.token_end - run.token_begin;
      const int32_t begin = std::max(half.slot_begin, run.slot_begin);
      const int32_t end = std::min(half.slot_begin + cuda::kHalfTokens, free_slot);
      if (begin >= end) decoded_.problem = "a half without a token of one of its runs";
      const bool full = (run.rows & cuda::Run::kFull) != 0;
      if (full && (row_begin != low || row_end != high))
        decoded_.problem = "full, but not all rows";
      // One read for each stretch of slots that do not count as empty.
      const auto is_empty = [&](int32_t slot) {
        const int32_t into = slot - run.slot_begin;
        return into < cuda::kGranule && (run.empty() >> into & 1) != 0;
      };
      for (int32_t slot = begin; slot < end; ++slot) {
        if (is_empty(slot)) continue;
        int32_t stop = slot + 1;
        while (stop < end && !is_empty(stop)) ++stop;
        decoded_.reads.push_back({unit_, unit.kv_head, first + row_begin, first + row_end,
                                  run.token_begin + slot - run.slot_begin,
                                  run.token_begin + stop - run.slot_begin, run.page_offset,
                                  full || (run.rows & cuda::Run::kPlain) != 0});
        slot = stop;
      }
    }
  }

  void read_merges() {
    const auto sources = section<cuda::Source>(header_.sources_offset, header_.sources);
    uint32_t merge_rows = 0;
    for (const auto& merge : section<cuda::Merge>(header_.merges_offset, header_.merges)) {
      for (uint32_t r = 0; r < cuda::kBlockRows; ++r) {
        if ((merge.rows[r / 32] >> r % 32 & 1) == 0) continue;
        ++merge_rows;
        ScheduledMerge row{
            merge.kv_head, static_cast<int32_t>(merge.block * cuda::kBlockRows + r), {}};
        for (int32_t s = merge.source_begin; s < merge.source_begin + merge.sources; ++s) {
          const uint32_t begin = sources[s].rows & 255;
          if (r < begin || r >= (sources[s].rows >> 8 & 255)) continue;
          row.partials.push_back(sources[s].partial + int64_t{r} - begin);
        }
        decoded_.merges.push_back(std::move(row));
      }
    }
    if (header_.merge_rows != 0 && header_.merge_rows != static_cast<int32_t>(merge_rows)) {
      decoded_.problem = "the rows to be merged are not all listed";
    }
  }

  const Plan& plan_;
  cuda::ScheduleHeader header_;
  int32_t unit_ = 0;  ///< at hand
  DecodedSchedule decoded_;
};

}  // namespace pando::testing
