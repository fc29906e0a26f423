// What the planner knows about the device it plans for.
#pragma once

#include <array>
#include <cstdint>
#include <iosfwd>
#include <string>

#include "pando/attention.h"

namespace pando {

enum class Backend : int32_t { kCpu = 0, kCuda = 1 };

/// Time one worker needs to compute `tokens` kv tokens of one kv head for `rows` packed query rows:
///   rows <= narrow_rows:  tokens * head_dim * rows * narrow_ns
///   otherwise:            tokens * (head_dim * (convert_ns + R * wide_ns) + R * softmax_ns)
/// with R = rows rounded up to row_granule.
struct KernelRate {
  int32_t narrow_rows = 0;
  int32_t row_granule = 16;
  double narrow_ns = 0;
  double convert_ns = 0;
  double wide_ns = 0;
  double softmax_ns = 0;
  double peak_flops_per_us = 0;  ///< all workers together; the roof
};

/// Numbers of one device. A plan depends on them, so the same profile gives the same plan.
struct DeviceProfile {
  std::array<char, 64> name{};  ///< zero-terminated, for reports
  Backend backend = Backend::kCpu;
  int32_t workers = 1;                ///< threads, or resident thread blocks
  int32_t row_tile = 128;             ///< packed query rows that one item takes at most
  int32_t kv_tile = 64;               ///< tokens a kernel takes at once; splits are multiples of it
  double launch_us = 0;               ///< fixed cost of one attend
  double item_us = 0;                 ///< fixed cost of one item at one kv head
  double partial_row_us = 0;          ///< writing, reading and merging one partial row of 128 dims
  double dram_bytes_per_us = 0;       ///< all workers together
  double cache_bytes_per_us = 0;      ///< all workers together, for bytes read again soon
  int64_t cache_bytes = 0;            ///< a segment up to this size is read again from cache
  std::array<KernelRate, 3> rates{};  ///< by DType
};

/// Stored profile of this machine's instruction set with `threads` threads (0: all cores).
/// Constant for a machine type, so plans and bits do not vary from run to run.
DeviceProfile cpu_profile(int threads = 0);
/// The same, with bandwidth, peak and kernel rates measured now (about a second).
DeviceProfile measure_cpu_profile(int threads = 0);
/// Profile of an NVIDIA H100 SXM; plans for it can be made and inspected on any machine.
DeviceProfile h100_profile();

}  // namespace pando
