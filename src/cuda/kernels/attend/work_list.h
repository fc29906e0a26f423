// What the attend kernel reads: one flat work list in device memory and the tensors' addresses.
#pragma once

#include <cstdint>

namespace pando::cuda {

/// Packed rows are cut into blocks of 64. A list is the concatenation of token runs that one block,
/// or two adjacent ones, attend to; each run starts at a multiple of 8 slots. A unit is a piece of
/// a list at one kv head.
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

/// A block whose sources are merged when all units are done.
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

struct Row {
  int32_t q_row, visible_begin, visible_end;
};

struct AttendParams {
  const Unit* units;
  const int32_t* cta_begin;  ///< [grid + 1]
  const Run* runs;
  const Merge* merge_list;
  int32_t merges;
  uint32_t* grid_counter;  ///< multiple of the grid between launches
  const Row* rows;
  const int32_t* page_ids;
  float* partial_o;    ///< [slots, head_dim]
  float* partial_lse;  ///< [slots], natural log
  const void* q;
  int64_t q_row_stride, q_head_stride;
  void* out;
  int64_t out_row_stride, out_head_stride;
  float* lse;  ///< optional [q_rows, q_heads]
  int32_t packed_rows;
  int32_t q_heads;
  int32_t group;
  int32_t page_shift;  ///< log2 page_tokens
  int32_t box_shift;   ///< log2 of the tokens of a big box
  float scale_log2;    ///< scale * log2(e)
};

}  // namespace pando::cuda
