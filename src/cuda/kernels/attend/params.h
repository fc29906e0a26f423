// What a launch of the attend kernel hands over.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

#include "plan/schedule_format.h"

namespace pando::cuda {

/// Divides numbers below 2^31 by `divisor` without a division: magic = ceil(2^(31 + l) / divisor)
/// for the least l with divisor <= 2^l (Granlund and Montgomery, 1994).
struct Divider {
  uint32_t magic;
  int32_t shift;

  static constexpr Divider by(int32_t divisor) {
    const int32_t shift = 31 + std::bit_width(static_cast<uint32_t>(divisor - 1));
    const auto d = static_cast<uint64_t>(divisor);
    return {static_cast<uint32_t>(((uint64_t{1} << shift) + d - 1) / d), shift};
  }
  constexpr int32_t quotient(int32_t n) const {
    return static_cast<int32_t>(uint64_t{static_cast<uint32_t>(n)} * magic >> shift);
  }
};

/// Memory that the thread blocks of a launch bring into L2, each its share.
struct PrefetchedArea {
  int64_t bytes;  ///< from its first multiple of 16 to its last
  int32_t share;  ///< bytes of a thread block
};

/// Pointers into device memory, strides and constants of the AttentionSpec. A captured graph keeps
/// these; what depends on the plan the kernel reads from `schedule`.
struct AttendParams {
  const std::byte* schedule;  ///< a ScheduleHeader and its sections
  uint64_t* control;          ///< Control::kBytes, zero before the first launch; see Control
  const int32_t* page_ids;
  float* partials;  ///< [partial_rows, head_dim], then their LSE; may hold anything
  const void* q;
  int64_t q_row_stride, q_head_stride;
  void* out;
  int64_t out_row_stride, out_head_stride;
  float* lse;  ///< optional [q_rows, q_heads]
  int32_t q_heads;
  int32_t group;
  Divider by_group;  ///< divides by `group`
  PageShape pages;
  int32_t page_step, head_step;  ///< KvSteps::page and head
  const std::byte *k, *v;        ///< for copies by token, with their strides in elements
  int64_t page_stride, head_stride, token_stride;
  /// Of weights exp2(scale_log2 * difference of scores): |scale| * log2(e), log2(e) for a scale of
  /// 0. With a soft cap scores become tanh(into_cap * score), and this is cap * log2(e).
  float scale_log2;
  float into_cap;      ///< |scale| / cap; 0: no cap
  const float* sinks;  ///< optional [q_heads]
  uint32_t q_keep;     ///< bits of two queries that count: none for a scale of 0
  uint32_t q_flip;     ///< bits that change: the signs, for a negative scale
  /// What is read first, one thing after another: schedule, page ids, q. Of the plan that was
  /// launched or captured; a later one may use less or more of them.
  PrefetchedArea schedule_area, page_ids_area, q_area;
  /// Of fp8 K and V; of kv head h that at h * stride.
  const float *k_scale, *v_scale;
  int32_t k_scale_stride, v_scale_stride;
};

/// Thread blocks of a launch at most: more than any device has multiprocessors.
inline constexpr int32_t kMostThreadBlocks = 512;

/// Shared memory that a thread block can have on Hopper.
inline constexpr int32_t kMostSharedBytes = 227 << 10;

/// Words of device memory that launches which may not overlap share between them. Every launch
/// leaves them ready for the next, so that it needs no other node beside it.
struct Control {
  /// Each launch adds 1 << kLaunchShift in all, a part with each consumer warp that leaves. Before
  /// the last has left, kLeft >> kLaunchShift is the number of launches that have finished: the
  /// epoch.
  static constexpr int32_t kLeft = 0;
  static constexpr int32_t kLaunchShift = 16;
  /// By writer of a Source, each in a line of its own, since many wait for it: epoch << 32 |
  /// finished units.
  static constexpr int32_t progress(int32_t writer) { return (1 + writer) * kLineWords; }
  static constexpr int32_t kLineWords = 16;
  static constexpr int64_t kBytes = 8 * kLineWords * (1 + 2 * int64_t{kMostThreadBlocks});
};

}  // namespace pando::cuda
