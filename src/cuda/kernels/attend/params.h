// What a launch of the attend kernel hands over.
#pragma once

#include <cstddef>
#include <cstdint>

#include "plan/schedule_format.h"

namespace pando::cuda {

/// Pointers into device memory, strides and constants of the AttentionSpec. A captured graph keeps
/// these; what depends on the plan the kernel reads from `schedule`.
struct LaunchParams {
  const std::byte* schedule;  ///< a ScheduleHeader and its sections
  uint32_t* control;          ///< kControlBytes, zero before the first launch
  const int32_t* page_ids;
  float* partials;  ///< [partial_rows, head_dim], then their LSE; may hold anything
  const void* q;
  int64_t q_row_stride, q_head_stride;
  void* out;
  int64_t out_row_stride, out_head_stride;
  float* lse;  ///< optional [q_rows, q_heads]
  int32_t q_heads;
  int32_t group;
  int32_t page_shift;  ///< log2 page_tokens
  int32_t box_shift;   ///< log2 of the tokens of a big box
  float scale_log2;    ///< scale * log2(e)
};

/// Bytes of device memory that launches which may not overlap share between them: the barrier over
/// the grid. Every launch leaves it ready for the next.
inline constexpr int64_t kControlBytes = 256;

/// The same with the pointers into the schedule resolved, as a thread block sees them.
struct AttendParams {
  const Unit* units;
  const int32_t* cta_begin;  ///< [grid + 1]
  const Run* runs;
  const Merge* merge_list;
  int32_t merges;
  uint32_t* grid_counter;
  const Row* rows;
  const int32_t* page_ids;
  float* partial_o;    ///< [slots, head_dim]
  float* partial_lse;  ///< [slots], natural log
  const void* q;
  int64_t q_row_stride, q_head_stride;
  void* out;
  int64_t out_row_stride, out_head_stride;
  float* lse;
  int32_t packed_rows;
  int32_t q_heads;
  int32_t group;
  int32_t page_shift;
  int32_t box_shift;
  float scale_log2;
};

#ifdef __CUDACC__
__device__ __forceinline__ AttendParams resolve(const LaunchParams& launch, int32_t head_dim) {
  const auto& header = *reinterpret_cast<const ScheduleHeader*>(launch.schedule);
  const auto section = [&](const int64_t& offset) { return launch.schedule + __ldg(&offset); };
  return {.units = reinterpret_cast<const Unit*>(section(header.units_offset)),
          .cta_begin =
              reinterpret_cast<const int32_t*>(launch.schedule + ScheduleHeader::kCtaBeginOffset),
          .runs = reinterpret_cast<const Run*>(section(header.runs_offset)),
          .merge_list = reinterpret_cast<const Merge*>(section(header.merges_offset)),
          .merges = __ldg(&header.merges),
          .grid_counter = launch.control,
          .rows = reinterpret_cast<const Row*>(section(header.rows_offset)),
          .page_ids = launch.page_ids,
          .partial_o = launch.partials,
          .partial_lse = launch.partials + int64_t{__ldg(&header.partial_rows)} * head_dim,
          .q = launch.q,
          .q_row_stride = launch.q_row_stride,
          .q_head_stride = launch.q_head_stride,
          .out = launch.out,
          .out_row_stride = launch.out_row_stride,
          .out_head_stride = launch.out_head_stride,
          .lse = launch.lse,
          .packed_rows = __ldg(&header.packed_rows),
          .q_heads = launch.q_heads,
          .group = launch.group,
          .page_shift = launch.page_shift,
          .box_shift = launch.box_shift,
          .scale_log2 = launch.scale_log2};
}
#endif

}  // namespace pando::cuda
