// The attend kernel's work list in bytes: a header, then sections at offsets from its start. Host
// and device read the same structs; nothing else in the library looks past the header, but for
// place_starts, which deals the starts to the thread blocks of a launch.
#pragma once

#include <cstdint>
#include <span>
#include <type_traits>

#include "plan/tile_format.h"

namespace pando::cuda {

/// The head of a schedule. All that the kernel must know of a plan stands in a section: its launch
/// parameters hold only what every plan of one AttentionSpec has in common.
struct ScheduleHeader {
  static constexpr int64_t kAlignment = 64;  ///< of a schedule and of its sections
  /// Of the first section, [thread_blocks] of Start. It is always here, so that the kernel need not
  /// read the header first.
  static constexpr int64_t kStartsOffset = 128;

  int64_t total_bytes = 0;
  int64_t units_offset = 0;
  int64_t halves_offset = 0;
  int64_t runs_offset = 0;
  int64_t rows_offset = 0;
  int64_t merges_offset = 0;
  int64_t sources_offset = 0;
  int64_t merge_rows_offset = 0;
  int64_t tree_rows_offset = 0;
  int32_t thread_blocks = 0;
  int32_t packed_rows = 0;
  int32_t partial_rows = 0;  ///< at all kv heads
  int32_t units = 0;
  int32_t halves = 0;
  int32_t runs = 0;
  int32_t rows = 0;
  int32_t merges = 0;
  int32_t sources = 0;
  int32_t merge_rows = 0;  ///< rows to be merged, when each is a job of its own; else 0
  int32_t tree_rows = 0;   ///< all rows, when some have holes; else 0
  int32_t merge_team_shift = 0;
};
static_assert(sizeof(ScheduleHeader) <= ScheduleHeader::kStartsOffset);

/// Whether so many thread blocks are clusters of two, which see each other's shared memory.
constexpr bool has_clusters(int32_t thread_blocks) { return thread_blocks % 2 == 0; }

/// Packed rows are cut into blocks of so many: the height of a wgmma.
inline constexpr int32_t kBlockRows = 64;

/// Of these, those that one thread block of a cluster writes: see Start::exchanged.
inline constexpr int32_t kClusterRows = kBlockRows / 2;

/// kHalfTokens slots of a stream, and the runs that lie in them.
struct alignas(16) Half {
  int32_t slot_begin;
  int32_t run_begin;
  int32_t runs;  ///< 0 to 8; 0: no token at all
  int32_t reserved;
};

/// How one block of a unit ends. Rows are relative to the block.
struct alignas(16) Ending {
  int32_t partial;   ///< row of the partials at which the touched rows start; -1: none needed
  uint32_t touched;  ///< rows that may have seen something: begin | end << 8
  uint32_t direct;   ///< of these, rows that go to out from here: begin | end << 8
  int32_t reserved;
};

/// Rows of one block that a narrow unit touches at most, by split tiles alone. wgmma would multiply
/// 64, and have fp8 converted in shared memory for it: see narrow.cuh.
inline constexpr int32_t kNarrowRows = 16;
/// Whether the kernel knows narrow units. With 16 bits an element they gain nothing.
constexpr bool has_narrow_units(int32_t head_dim, bool fp8) { return fp8 && head_dim == 128; }

/// A piece of a list at one kv head. Whole tiles are for both of its blocks, one warpgroup each:
/// two consecutive halves of a stream. Of a split tile each warpgroup takes one half: with two
/// blocks the half holds tokens of that warpgroup's block alone; with one, both halves are for the
/// block.
struct alignas(16) Unit {
  int32_t block;
  int32_t blocks;  ///< 1 or 2
  int32_t kv_head;
  int32_t split_first;  ///< split tiles come before whole ones
  int32_t whole_tiles;
  int32_t whole_begin, whole_end;  ///< halves
  int32_t split_tiles;
  int32_t split_begin[2], split_end[2];  ///< halves of warpgroup 0 and of warpgroup 1
  Ending ending[2];

  /// Whether both have the same rows and tiles, but for the kv head.
  constexpr bool alike(const Unit& other) const {
    return block == other.block && blocks == other.blocks && split_first == other.split_first &&
           whole_tiles == other.whole_tiles && whole_begin == other.whole_begin &&
           whole_end == other.whole_end && split_tiles == other.split_tiles &&
           split_begin[0] == other.split_begin[0] && split_begin[1] == other.split_begin[1] &&
           split_end[0] == other.split_end[0] && split_end[1] == other.split_end[1];
  }
  /// Whether it has few rows, of one block: see kNarrowRows.
  constexpr bool is_narrow() const {
    const uint32_t rows = ending[0].touched;
    return blocks == 1 && whole_tiles == 0 &&
           static_cast<int32_t>(rows >> 8 & 255) - static_cast<int32_t>(rows & 255) <= kNarrowRows;
  }
  /// Halves of the stream from one split tile to the next.
  constexpr int32_t split_stride() const { return blocks == 2 ? 1 : 2; }
};

/// Whether a thread block with these units has one tile, split, of one block.
constexpr bool has_one_tile(std::span<const Unit> units) {
  return units.size() == 1 && units[0].blocks == 1 && units[0].whole_tiles == 0 &&
         units[0].split_tiles == 1;
}

/// A block at one kv head with rows that no unit writes to out.
struct alignas(16) Merge {
  int32_t block;
  int32_t kv_head;
  int32_t source_begin;
  int32_t sources;
  uint32_t rows[2];  ///< one bit for each row to be merged
  int32_t reserved[2];

  constexpr uint64_t wanted() const { return rows[0] | uint64_t{rows[1]} << 32; }
};

/// Merges of a schedule at most, so that the kernel's job numbers fit 32 bits.
inline constexpr int32_t kMostMerges = 1 << 26;

/// A row is merged by 2^0 to 2^3 warps of a thread block.
inline constexpr int32_t kMostMergeTeamShift = 3;

/// A row to be merged: index of its merge << 8 | row of the block.
using MergeRow = uint32_t;

/// Partials of some rows of a block.
struct alignas(16) Source {
  int32_t partial;  ///< row of the partials that holds row `begin`
  uint32_t rows;    ///< begin | end << 8, of the block
  int32_t writer;   ///< thread block * 2 + warpgroup
  int32_t ticket;   ///< written when so many units of the writer are finished
};

/// A query row in plan order.
struct Row {
  int32_t q_row, visible_begin, visible_end;
};

/// What a row sees beside its Row: of the positions from `begin` on those whose bit is set in
/// `mask`, and all before.
struct alignas(16) TreeRow {
  uint64_t mask;
  int32_t begin;
  int32_t reserved;

  /// Two bits: whether `position`, and the one after it, are among those; any for positions that
  /// the Row excludes.
  constexpr uint32_t sees_two(int32_t position) const {
    const int32_t into = position - begin;
    if (into < -1) return 3;
    const auto two = static_cast<uint32_t>(mask >> (into < 0 ? 0 : into < 63 ? into : 63));
    return (into < 0 ? two << 1 | 1 : two) & 3;
  }
};

/// Where a thread block begins: all that its first tiles need in one read.
struct alignas(64) Start {
  static constexpr int32_t kTiles = 2;

  int32_t unit_begin, unit_end;
  int32_t merges;
  int32_t packed_rows;
  // Sections, in units of 16 bytes from the start of the schedule.
  int32_t units_at, halves_at, runs_at, rows_at;
  int32_t merges_at, sources_at, merge_rows_at;
  int32_t tree_rows_at;  ///< 0: no row has holes
  Unit unit;             ///< a copy of the first unit
  int32_t tile_count;    ///< of all units of the thread block
  int32_t partial_rows;
  int32_t merge_rows;
  /// Of the first row of the first unit, when the unit's rows follow each other in q; else -1.
  int32_t q_row;
  int32_t merge_team_shift;  ///< log2 of the warps that merge one of merge_rows together
  int32_t narrow;            ///< 1: all its units are; see kNarrowRows
  int32_t evict_first;       ///< 1: L2 need not keep K and V once they were read
  /// One bit for each block of the last unit: of what its rows see, thread blocks 2 i and 2 i + 1,
  /// a cluster, have a part each, and hand half of the rows over to each other.
  int32_t exchanged;
  int32_t thread_block;  ///< whose it is; a launch may deal clusters in another order
  /// 1: its only unit is of one tile, no row has holes, and so it is with the thread block that it
  /// exchanges rows with.
  int32_t one_tile;
  int32_t reserved[6];
  TileInfo tiles[kTiles];  ///< the first
};
static_assert(sizeof(Start) % 128 == 0, "what is read first begins with a line");

/// Entries are copied as they lie in memory, where padding may hold anything.
template <class... Entries>
inline constexpr bool kHaveNoPadding = (std::has_unique_object_representations_v<Entries> && ...);
static_assert(kHaveNoPadding<ScheduleHeader, Start, Unit, Half, Run, Row, Merge, Source, TreeRow>,
              "equal schedules are equal bytes");

}  // namespace pando::cuda
