// From runs to the kernel's work list: lists over blocks of 64 packed rows, cut into units that are
// dealt to thread blocks.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "pando/forest.h"
#include "pando/plan.h"
#include "plan/runs.h"
#include "plan/schedule_format.h"

namespace pando::cuda {

/// The times of a profile, which are those of a head_dim up to 128, at another: above it a tile
/// holds and multiplies more, and a row of partials is read in more turns. An estimate.
inline ScheduleCost cost_at(ScheduleCost cost, int32_t head_dim) {
  const double factor = std::max(1.0, head_dim / 128.0);
  cost.whole_tile_us *= factor;
  cost.split_tile_us *= factor;
  cost.turn_us *= factor;
  return cost;
}

/// What a merge of rows of so many partials takes turn_us and lookup_us for: see ScheduleCost.
inline double merge_turns(double sources) {
  return std::floor(std::max(0.0, std::ceil(sources) - 1) / 16);
}
inline double merge_lookups(double sources) {
  return std::floor(std::max(0.0, std::ceil(sources) - 33) / 32);
}

/// Takes the tokens of `left` before `token_end` off it: as a run of their own, in the slots that
/// they had.
inline Run take_until(Run& left, int32_t token_end) {
  Run part = left;
  part.token_end = token_end;
  left.slot_begin += token_end - left.token_begin;
  left.token_begin = token_end;
  left.rows &= ~Run::kEmpty;
  return part;
}

/// Makes schedules and keeps its memory, so that replanning stops allocating.
class Scheduler {
 public:
  /// What a schedule is made of.
  struct Problem {
    const Forest& forest;
    const RowOrder& order;
    std::span<const pando::Run> runs;
    int32_t kv_heads;
    int32_t group;
    int64_t token_head_bytes;  ///< K and V of one token at one kv head
    int32_t thread_blocks;
    ScheduleCost cost;  ///< at the head_dim
    double partial_row_us;
    double memory_bytes_per_us;
    int64_t cache_bytes;  ///< of L2
    /// Of what the runs read, as much as L2 does not hold already; only build looks at it.
    int64_t memory_bytes = 0;
    /// Distance of the cuts of a batch-invariant schedule, a multiple of kTileTokens; 0: tokens are
    /// placed and cut where it is predicted to be fastest.
    int32_t cut_tokens = 0;
    int32_t tokens_at_once = kTileTokens;  ///< of a whole tile, as the kernel takes them
    bool narrow_units = false;             ///< the kernel knows them

    int32_t packed_rows() const { return static_cast<int32_t>(order.rows.size()) * group; }
    int32_t blocks() const;
    /// From the last partial to the last row of out when all rows have so many partials, in
    /// microseconds. Those of a row beyond two are read while others are waited for. Their number
    /// counts, at any head_dim.
    double merging_us(double sources) const {
      const int64_t partials = 2 * int64_t{packed_rows()} * kv_heads;
      return cost.merge_us + merge_turns(sources) * cost.turn_us +
             merge_lookups(sources) * cost.lookup_us +
             static_cast<double>(partials) / thread_blocks * partial_row_us;
    }
    /// The same when all lists are in two parts, for a cluster each, which exchanges its rows: a
    /// quarter of a merge's fixed time (docs/benchmarks/h200-kernel-exchange-2026-11-30.txt).
    double exchange_us() const {
      return has_clusters(thread_blocks) ? cost.merge_us / 4 : merging_us(2);
    }
  };

  /// Lists over single blocks and over pairs of blocks are cut evenly, in several numbers of parts,
  /// and by equal shares, as stream-K does; the schedule with the least predicted time stays. A
  /// batch-invariant one has no such choice: see schedule_invariant.cc.
  /// Throws kUnsupported when the batch is larger than the kernel's 32-bit indices.
  void build(const Problem& problem);

  /// Of the schedule that was built last.
  const ScheduleHeader& header() const { return header_; }
  double predicted_us() const { return chosen_->predicted_us; }
  /// Tokens that its units read, counted at each kv head, and once for all lists that share them.
  int64_t kv_tokens() const { return chosen_->kv_tokens; }
  /// Writes header().total_bytes bytes: all of them, so that equal schedules are equal bytes.
  void write(const Problem& problem, std::byte* to) const;

 private:
  /// The runs of one block of rows, or of two: stream 0 for both, streams 1 and 2 for one block
  /// each. With one block there is stream 1 alone. A stream is a range of halves.
  struct List {
    int32_t block;
    int32_t blocks;
    int32_t begin[3], end[3];
    int32_t whole_tiles, split_tiles;  ///< the steps of the list, in this order
    int32_t step_begin;                ///< in Layout::until_us
    /// Of a pair of blocks: from half `alone_from` on, stream `alone` is a list over its block by
    /// itself; 0: none is.
    int32_t alone, alone_from;
    int32_t steps() const { return whole_tiles + split_tiles; }
    int32_t halves(int32_t stream) const { return end[stream] - begin[stream]; }
  };
  /// Of a narrow unit in the mean, where a piece is cut into some.
  static constexpr int32_t kLeastNarrowTiles = 4;
  /// Rows of the runs that a narrow unit has so far, of those of a single block in their order.
  struct NarrowRows {
    int32_t begin = -kNarrowRows;  ///< no unit has it
    /// Adds a run; whether it begins another unit, since the one before would have too many rows.
    bool begin_unit(const pando::Run& run, int32_t group) {
      if (run.row_end * group - begin <= kNarrowRows) return false;
      begin = run.row_begin * group;
      return true;
    }
  };
  /// The runs of a list over a single block, cut into narrow units.
  struct NarrowCut {
    int64_t tokens = 0, units = 0;
    bool fits = true;  ///< no run is for more rows than a narrow unit has
    bool pays() const {
      return units > 0 && fits && tokens >= units * kLeastNarrowTiles * kTileTokens;
    }
  };
  /// Steps [begin, end) of a list at one kv head.
  struct Piece {
    int32_t list;
    int32_t kv_head;
    int32_t begin;
    int32_t end;
    int32_t thread_block;
    int32_t cut = 0;  ///< of a batch-invariant schedule
  };
  /// Rows of one block that one unit touches.
  struct Touch {
    int32_t unit;
    int32_t thread_block;
    int32_t side;
    int32_t begin, end;
    int32_t cut;
  };
  /// Tokens of a run that some of its rows see, without a hole between them.
  struct Seen {
    int32_t run;
    int32_t row_begin, row_end;  ///< packed rows, from the list's first
    VisibleRange some, all;      ///< seen by some row; by every row
  };
  /// Tokens that every row of a run sees; whether the run's rows are all that come by.
  struct SeenByAll {
    VisibleRange range;
    bool by_every_row;
  };
  /// A run of a list as far as it lies in one cut.
  struct Part {
    int32_t run;
    int32_t row_begin, row_end;  ///< packed rows, from the list's first
    int64_t slots;               ///< that it takes
  };
  struct TimedPiece {
    int64_t tenths;  ///< predicted time in 0.1 us
    size_t piece;
  };
  struct Busy {
    double until_us;
    int32_t thread_block;
    bool operator<(const Busy& b) const {
      return until_us != b.until_us ? until_us < b.until_us : thread_block < b.thread_block;
    }
  };
  /// Rows of a block by the number of their sources, one bit each.
  struct RowSources {
    uint64_t without = 0, with_one = 0, with_more = 0;
  };
  struct Step {
    double us;  ///< by itself
    bool own;   ///< no other list reads its tokens: they come from memory
  };
  /// Lists over one block each, or over two, and how they are cut.
  struct Layout {
    std::vector<Run> runs;
    std::vector<Half> halves;
    std::vector<uint8_t> own;  ///< by half: no other list reads its tokens
    std::vector<List> lists;
    std::vector<Step> steps;       ///< of all lists
    std::vector<double> until_us;  ///< by list: 0, then predicted time up to the end of each step
    std::vector<double> own_until_us;  ///< the same of own steps, each by itself
    double own_factor = 1;             ///< that own steps take longer when all thread blocks work
    std::vector<Piece> pieces;
    int64_t kv_tokens = 0;
    int64_t list_tokens = 0, narrow_tokens = 0;  ///< of all lists, and of those of narrow units
    bool narrow_fits = false;                    ///< in all lists
    /// Whether most of it will be narrow units. Lists over pairs of blocks have none, and where no
    /// run is for many rows there is nothing that a pair would share.
    bool is_narrow() const { return narrow_fits && narrow_tokens > list_tokens / 2; }
    double apart_us = 0;  ///< time of memory when lists that share tokens are not side by side
    double predicted_us = 0;
  };

  void make_layout(const Problem& p, int32_t blocks_a_list, Layout& out);
  void fill_stream(const Problem& p, std::span<const int32_t> runs, List& list, int32_t stream,
                   Layout& out);
  static List take_alone(List& list);
  VisibleRange find_seen(const Problem& p, const pando::Run& run, int32_t packed_begin,
                         int32_t packed_end, VisibleRange within);
  void place_run(const Problem& p, const pando::Run& run, const List& list, int32_t stream,
                 int64_t& slot, Layout& out);
  static void check_slots(int64_t slots);
  static NarrowCut narrow_cut(const Problem& p, std::span<const int32_t> runs);
  static void append_run(const List& list, int32_t stream, Run run, bool own, Layout& out);
  void find_holes(const Problem& p, int32_t packed_begin, int32_t packed_end, VisibleRange within);
  void append_all(const Problem& p, const List& list, int32_t stream, const Run& run,
                  const SeenByAll& all, bool own, Layout& out);
  void append_exact(const Problem& p, const List& list, int32_t stream, const Run& run, bool own,
                    Layout& out);
  static void time_steps(const Problem& p, Layout& out);
  static void weigh_steps(const Problem& p, Layout& out);
  void cut(const Problem& p, Layout& out);
  double cut_evenly(const Problem& p, int32_t parts, Layout& out);
  static void deal_evenly(const Problem& p, int32_t parts, Layout& out);
  static double cut_by_share(const Problem& p, Layout& out);
  int64_t deal_to_pairs(const Problem& p);
  void build_invariant(const Problem& p);
  void make_invariant_layout(const Problem& p, int64_t most_slots, Layout& out);
  void place_in_cuts(const Problem& p, int32_t list, int64_t most_slots, int64_t& slot,
                     Layout& out);
  void place_unit(const Problem& p, int32_t list, int32_t cut, int32_t row_begin, int32_t row_end,
                  int64_t& slot, Layout& out);
  void place_stretch(const Problem& p, const Seen& seen, VisibleRange tokens, const List& list,
                     int64_t& slot, Layout& out);
  void deal_units(const Problem& p, Layout& out);
  static std::array<uint64_t, 2> touched_rows(const Layout& layout, const List& list,
                                              int32_t half_begin, int32_t half_end, int32_t stride);
  void add_pieces(const Problem& p, const Piece& piece);
  static Unit make_unit(const Layout& layout, const Piece& piece, int32_t nth);
  void list_units(const Problem& p);
  Source source_of(const Touch& touch) const;
  bool is_in_cluster(const Problem& p, std::span<const Touch> touches) const;
  uint64_t end_in_cluster(std::span<const Touch> touches);
  void end_block(const Problem& p, int32_t block, int32_t kv_head, int64_t& partial_rows);
  int32_t find_merge_team(const Problem& p) const;
  void list_merge_rows();
  void find_sources(const Problem& p, int32_t block);
  void end_block_in_cuts(const Problem& p, int32_t block, int32_t kv_head, int64_t& partial_rows);
  void lay_out(const Problem& p, int64_t partial_rows);
  Start make_start(int32_t thread_block) const;
  bool is_narrow(int32_t thread_block) const;
  std::span<const Unit> units_of(int32_t thread_block) const;
  void write_starts(const Problem& p, std::byte* to) const;

  Layout layouts_[2];
  const Layout* chosen_ = nullptr;
  std::vector<std::vector<int32_t>> members_[3];  ///< by stream and list: indices of runs
  std::vector<VisibleRange> seen_;                ///< of a run, by the rows of one list
  std::vector<VisibleRange> exact_;               ///< as seen_, but for the holes of trees
  std::vector<VisibleRange> holes_;               ///< of a run: tokens that none of its rows sees
  std::vector<VisibleRange> spans_;               ///< by run of a list: from first to last token
  std::vector<Part> unit_parts_, open_parts_;     ///< of a unit; that hold the row at hand
  std::vector<Seen> unit_seen_;                   ///< of a unit
  std::vector<TimedPiece> by_time_;               ///< at one kv head, longest first
  std::vector<Busy> busy_;                        ///< thread blocks, a heap: the first to end
  RowSources rows_;                               ///< of the block at hand
  std::vector<uint64_t> holders_;  ///< by touch of it: rows that see something in the unit
  std::vector<uint64_t> alike_;    ///< sets of its rows that have the same sources
  std::vector<double> loads_;      ///< by thread block
  std::vector<int32_t> taken_;     ///< by list: steps that parts have taken
  std::vector<Piece> pieces_;      ///< of which each becomes a unit
  std::vector<std::vector<Touch>> touches_;      ///< by block and kv head
  std::vector<Unit> units_;                      ///< in the order of their thread blocks
  std::vector<int32_t> unit_begin_, next_unit_;  ///< by thread block
  std::vector<Merge> merges_;
  std::vector<MergeRow> merge_rows_;
  std::vector<Source> sources_;
  std::vector<int32_t> exchanged_;  ///< by thread block: Start::exchanged
  ScheduleHeader header_;
};

}  // namespace pando::cuda
