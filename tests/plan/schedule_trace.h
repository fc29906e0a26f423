// An interpreter of schedules: what the CUDA kernel adds up for each row, and in which order.
//
// It follows kernel.cuh, scout.cuh, tiles.cuh and merge.cuh step by step, but keeps in place of
// numbers the list of additions that would make them. Two rows with equal lists get equal bits if
// these hold for the kernel's arithmetic:
// - what a row's sums become does not depend on which rows and columns of a product they lie in;
// - a weight of 0 leaves a sum as it is, and so does a factor of 1, and a weight of 1 a value: so
//   what a row does not see, partials in which it saw nothing, and a merge of one partial are left
//   out;
// - the softmax adds up slots of the same place in their granules, and the second product 16 slots
//   at a time: so each token stands with its slot modulo 16, and each 16 slots by themselves.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "core/mask.h"
#include "pando/plan.h"
#include "plan/schedule_format.h"

namespace pando::testing {

/// Additions in order: positions, their slots, and marks of where sums begin.
using Trace = std::vector<int32_t>;

class ScheduleTracer {
 public:
  /// What stands between positions in a trace.
  enum Mark : int32_t {
    kTile = -1,
    kStep = -2,
    kJoin = -3,
    kMerge = -4,
    kTogether = -5,
    kPartial = -6
  };

  explicit ScheduleTracer(const Plan& plan)
      : group_(plan.group()), tokens_at_once_(cuda::tokens_at_once(plan.header().head_dim)) {
    bytes_ = plan.schedule().data();
    std::memcpy(&header_, bytes_, sizeof(header_));
    kv_heads_ = plan.header().kv_heads;
    traces_.resize(int64_t{header_.rows} * plan.header().q_heads);
    written_.resize(traces_.size());
    partials_.resize(header_.partial_rows);
    const auto units = section<cuda::Unit>(header_.units_offset, header_.units);
    const auto starts =
        section<cuda::Start>(cuda::ScheduleHeader::kStartsOffset, header_.thread_blocks);
    for (const cuda::Start& start : starts) {
      for (int32_t u = start.unit_begin; u < start.unit_end; ++u) run_unit(units[u]);
    }
    merge_all();
  }

  /// Of one query row and head; nothing when it sees nothing.
  const Trace& trace(int32_t q_row, int32_t q_head) const {
    return traces_[int64_t{q_row} * group_ * kv_heads_ + q_head];
  }
  /// Every row and head is written once.
  bool is_complete() const {
    return std::ranges::all_of(written_, [](int times) { return times == 1; });
  }
  /// The positions of a trace, in the order in which they are added up.
  static std::vector<int32_t> positions(const Trace& trace) {
    std::vector<int32_t> result;
    for (size_t i = 0; i < trace.size(); ++i) {
      if (trace[i] >= 0)
        result.push_back(trace[i++]);
      else if (trace[i] == kTile || trace[i] == kMerge)
        ++i;
    }
    return result;
  }

 private:
  static constexpr int32_t kTileSlots = cuda::kTileTokens;
  static constexpr int32_t kGranules = kTileSlots / cuda::kGranule;

  /// What the scout says of one granule of 8 slots.
  struct Granule {
    int32_t position = 0;
    uint32_t slots = 0;  ///< that hold a token
    int32_t row_begin = 0, row_end = 0;
    bool full = false, plain = false;
  };
  struct Tile {
    Granule granules[kGranules];
  };

  template <class Entry>
  std::span<const Entry> section(int64_t offset, int32_t count) const {
    return {reinterpret_cast<const Entry*>(bytes_ + offset), static_cast<size_t>(count)};
  }

  /// LaneTile::describe.
  void describe(int32_t index, Granule* to) const {
    const cuda::Half half = section<cuda::Half>(header_.halves_offset, header_.halves)[index];
    const auto runs =
        section<cuda::Run>(header_.runs_offset, header_.runs).subspan(half.run_begin, half.runs);
    for (int32_t g = 0; g < kGranules / 2; ++g, ++to) {
      const int32_t slot = half.slot_begin + g * cuda::kGranule;
      const cuda::Run* run = nullptr;
      for (const cuda::Run& each : runs) {
        if (each.slot_begin <= slot) run = &each;
      }
      if (run == nullptr) continue;
      to->position = run->token_begin + slot - run->slot_begin;
      for (int32_t e = 0; e < cuda::kGranule && to->position + e < run->token_end; ++e) {
        const bool empty = run->slot_begin == slot && (run->empty() >> e & 1) != 0;
        if (!empty) to->slots |= 1u << e;
      }
      to->row_begin = static_cast<int32_t>(run->rows & 255);
      to->row_end = static_cast<int32_t>(run->rows >> 8 & 255);
      const bool whole = to->slots == cuda::Granule::kAllSlots;
      to->full = whole && (run->rows & cuda::Run::kFull) != 0;
      to->plain = whole && (run->rows & cuda::Run::kPlain) != 0;
    }
  }

  /// attend_tiles: the sums of one row over the slots that its warpgroup takes.
  void attend(const Tile& tile, bool whole, int32_t consumer, int32_t row, const PlanRow& sees,
              Trace& sums) const {
    const int32_t half = kGranules / 2;
    const std::span<const Granule> granules(tile.granules);
    if (!whole) return attend_part(granules.subspan(consumer * half, half), false, row, sees, sums);
    const int32_t at_once = tokens_at_once_ / cuda::kGranule;
    for (int32_t first = 0; first < kGranules; first += at_once) {
      attend_part(granules.subspan(first, at_once), true, row, sees, sums);
    }
  }

  /// The slots that one softmax takes.
  static void attend_part(std::span<const Granule> part, bool whole, int32_t row,
                          const PlanRow& sees, Trace& sums) {
    const auto has = [row](const Granule& g) { return row >= g.row_begin && row < g.row_end; };
    const bool full = std::ranges::all_of(part, &Granule::full);
    const bool plain = std::ranges::all_of(part, [&](const Granule& g) {
      return g.plain && g.row_begin == part[0].row_begin && g.row_end == part[0].row_end;
    });
    bool any = false;
    int32_t step = -1;
    for (int32_t slot = 0; slot < static_cast<int32_t>(part.size()) * cuda::kGranule; ++slot) {
      const Granule& g = part[slot / cuda::kGranule];
      const int32_t e = slot % cuda::kGranule;
      const int32_t position = g.position + e;
      const bool seen =
          full || (plain ? has(part[0])
                         : has(g) && (g.slots >> e & 1) != 0 &&
                               sees_position(sees.visible_begin, sees.visible_end, sees.tree_begin,
                                             sees.tree_mask, position));
      if (!seen) continue;
      if (!any) sums.insert(sums.end(), {kTile, whole ? 1 : 0});
      if (slot / 16 != step) sums.push_back(kStep);
      any = true;
      step = slot / 16;
      sums.insert(sums.end(), {position, slot % 16});
    }
  }

  /// A row as the kernel's two sections have it.
  PlanRow row_mask(int32_t index) const {
    const cuda::Row& row = section<cuda::Row>(header_.rows_offset, header_.rows)[index];
    PlanRow mask{row.q_row, row.visible_begin, row.visible_end, row.visible_end, 0};
    if (header_.tree_rows == 0) return mask;
    const auto& tree = section<cuda::TreeRow>(header_.tree_rows_offset, header_.tree_rows)[index];
    mask.tree_begin = tree.begin;
    mask.tree_mask = tree.mask;
    return mask;
  }

  void run_unit(const cuda::Unit& unit) {
    const bool alone = unit.blocks == 1;
    Trace state[2][cuda::kBlockRows];
    for (int turn = 0; turn < 2; ++turn) {
      const bool whole = (turn == 0) != (unit.split_first != 0);
      for (int32_t t = 0; t < (whole ? unit.whole_tiles : unit.split_tiles); ++t) {
        Tile tile;
        for (int32_t side = 0; side < 2; ++side) {
          const int32_t half = whole ? unit.whole_begin + 2 * t + side
                                     : unit.split_begin[side] + t * unit.split_stride();
          const int32_t end = whole ? unit.whole_end : unit.split_end[side];
          if (half < end) describe(half, tile.granules + side * kGranules / 2);
        }
        for (int32_t consumer = 0; consumer < 2; ++consumer) {
          const int32_t side = alone ? 0 : consumer;
          for (int32_t r = 0; r < cuda::kBlockRows; ++r) {
            const int32_t packed = (unit.block + side) * cuda::kBlockRows + r;
            if (packed >= header_.packed_rows) break;
            attend(tile, whole, consumer, side * cuda::kBlockRows + r, row_mask(packed / group_),
                   state[consumer][r]);
          }
        }
      }
    }
    if (alone) {
      for (int32_t r = 0; r < cuda::kBlockRows; ++r) join(state[0][r], state[1][r]);
    }
    for (int32_t side = 0; side < unit.blocks; ++side) finish(unit, side, state[side]);
  }

  static void join(Trace& a, const Trace& b) {
    if (a.empty())
      a = b;
    else if (!b.empty()) {
      a.push_back(kJoin);
      a.insert(a.end(), b.begin(), b.end());
    }
  }

  void finish(const cuda::Unit& unit, int32_t side, Trace (&state)[cuda::kBlockRows]) {
    const cuda::Ending& ending = unit.ending[side];
    for (uint32_t r = ending.touched & 255; r < (ending.touched >> 8 & 255); ++r) {
      if (r >= (ending.direct & 255) && r < (ending.direct >> 8 & 255)) {
        write(unit.block + side, unit.kv_head, static_cast<int32_t>(r), state[r]);
      } else {
        partials_.at(ending.partial + r - (ending.touched & 255)) = state[r];
      }
    }
  }

  void write(int32_t block, int32_t kv_head, int32_t r, const Trace& trace) {
    const int32_t packed = block * cuda::kBlockRows + r;
    const auto& row = section<cuda::Row>(header_.rows_offset, header_.rows)[packed / group_];
    const int32_t head = kv_head * group_ + packed % group_;
    const int64_t to = int64_t{row.q_row} * group_ * kv_heads_ + head;
    traces_.at(to) = trace;
    ++written_.at(to);
  }

  /// merge_jobs: of few rows each by itself, 16 sources at once; of many by fours, 2 at once. Of
  /// each 32 sources in turn those that hold one of the job's rows.
  void merge_all() {
    const bool few = header_.merge_rows > 0;
    const int32_t rows = few ? 1 : 4;
    const int32_t at_once = few ? 16 : 2;
    for (const auto& merge : section<cuda::Merge>(header_.merges_offset, header_.merges)) {
      const auto sources = section<cuda::Source>(header_.sources_offset, header_.sources)
                               .subspan(merge.source_begin, merge.sources);
      for (int32_t r = 0; r < cuda::kBlockRows; ++r) {
        if ((merge.rows[r / 32] >> r % 32 & 1) == 0) continue;
        Trace merged{kMerge, rows};
        const Trace* only = nullptr;
        int32_t count = 0, taken = 0;
        bool together = false;
        for (int32_t i = 0; i < merge.sources; ++i) {
          if (i % 32 == 0) taken = 0;
          const auto begin = static_cast<int32_t>(sources[i].rows & 255);
          const auto end = static_cast<int32_t>(sources[i].rows >> 8 & 255);
          const int32_t job = r / rows * rows;
          if (begin >= job + rows || job >= end) continue;
          if (taken++ % at_once == 0) together = false;
          if (r < begin || r >= end) continue;
          const Trace& partial = partials_.at(sources[i].partial + r - begin);
          if (partial.empty()) continue;
          if (!together) merged.push_back(kTogether);
          together = true;
          merged.push_back(kPartial);
          merged.insert(merged.end(), partial.begin(), partial.end());
          only = &partial;
          ++count;
        }
        write(merge.block, merge.kv_head, r, count == 0 ? Trace{} : count == 1 ? *only : merged);
      }
    }
  }

  const std::byte* bytes_;
  cuda::ScheduleHeader header_;
  int32_t group_, kv_heads_, tokens_at_once_;
  std::vector<Trace> traces_;  ///< by query row and head
  std::vector<int> written_;
  std::vector<Trace> partials_;
};

}  // namespace pando::testing
