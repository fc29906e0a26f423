// The attend kernel's work list in bytes: a header, then sections at offsets from its start. Host
// and device read the same structs; nothing else in the library looks past the header.
#pragma once

#include <cstdint>

namespace pando::cuda {

/// The head of a schedule. All that the kernel must know of a plan stands here or in a section:
/// its launch parameters hold only what every plan of one AttentionSpec has in common.
struct ScheduleHeader {
  static constexpr int64_t kAlignment = 64;  ///< of a schedule and of its sections
  /// Of the first section, [thread_blocks + 1]: where each thread block's units start. It is always
  /// here, so that the kernel reads it beside the header and not after it.
  static constexpr int64_t kCtaBeginOffset = 128;

  int64_t total_bytes = 0;
  int64_t units_offset = 0;
  int64_t runs_offset = 0;
  int64_t merges_offset = 0;
  int64_t rows_offset = 0;
  int32_t thread_blocks = 0;
  int32_t packed_rows = 0;
  int32_t partial_rows = 0;  ///< at all kv heads
  int32_t units = 0;
  int32_t runs = 0;
  int32_t merges = 0;
  int32_t rows = 0;
  int32_t reserved = 0;
};
static_assert(sizeof(ScheduleHeader) <= ScheduleHeader::kCtaBeginOffset);

/// Packed rows are cut into blocks of so many: the height of a wgmma.
inline constexpr int32_t kBlockRows = 64;
/// Slots of one turn of the kernel's ring.
inline constexpr int32_t kTileSlots = 128;

/// A list is the concatenation of token runs that one block of packed rows, or two adjacent ones,
/// attend to; each run starts at a multiple of 8 slots. A unit is a piece of a list at one kv head.
struct alignas(16) Run {
  static constexpr int32_t kFull = 1 << 16;   ///< every row of the unit sees every token
  static constexpr int32_t kPlain = 1 << 17;  ///< the run's rows see every token

  int32_t slot_begin;   ///< in the list; the run before it, and the gap after that, end here
  int32_t token_begin;  ///< positions in the sequence
  int32_t token_end;
  int32_t page_offset;  ///< index in page_ids of the page that holds position 0
  int32_t rows;         ///< of the unit, that see this run: begin | end << 8 | flags
  int32_t reserved[3];
};

/// How one block of a unit ends: alone, or as one of `sources` partials.
struct alignas(16) Ending {
  int32_t partial;  ///< row of the partials that this block writes
  int32_t first;    ///< row of the partials at which the block's sources start
  int32_t sources;  ///< 1: the result goes straight to out
  int32_t reserved;
};

/// A block whose sources are merged when all units are done; with none its rows are empty.
struct alignas(16) Merge {
  int32_t block;
  int32_t kv_head;
  int32_t first;  ///< row of the partials at which its sources start, 64 rows each
  int32_t sources;
};

struct alignas(16) Unit {
  int32_t block;
  int32_t blocks;  ///< 1 or 2
  int32_t kv_head;
  int32_t slot_begin;
  int32_t slot_end;
  int32_t run_begin;
  int32_t run_end;
  int32_t reserved;
  Ending ending[2];
};

/// A query row in plan order.
struct Row {
  int32_t q_row, visible_begin, visible_end;
};

}  // namespace pando::cuda
