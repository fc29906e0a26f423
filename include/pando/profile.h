// What the planner knows about the device it plans for.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

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

/// Times of one thread block of a schedule for CUDA, in microseconds. A thread block takes
///   units * unit_us + whole tiles * whole_tile_us + split tiles * split_tile_us
///       + sum over tiles of (runs of its fuller half - 1) * run_us,
/// where tiles that memory delivers more slowly take longer, and those of a head_dim above 128 in
/// proportion; then the rows of several sources take
///   merge_us + floor((sources - 1) / 16) * turn_us
///       + max(0, floor((sources - 33) / 32)) * lookup_us
///       + 2 * rows / workers * DeviceProfile::partial_row_us,
/// or, where all lists are in two parts, of which one folds the other's partials in,
///   2 / 3 * (merge_us + rows / workers * DeviceProfile::partial_row_us).
struct ScheduleCost {
  double whole_tile_us = 0;    ///< 128 tokens for two blocks of 64 rows
  double split_tile_us = 0;    ///< 64 tokens for each of two blocks, or 128 for one
  double run_us = 0;           ///< more for each run but one in a half of a tile
  double unit_us = 0;          ///< query rows, first loads and the end of a unit
  double merge_us = 0;         ///< from the last partial to the last row of out, for 16 of a row
  double turn_us = 0;          ///< more for each 16 partials of a row beyond that
  double lookup_us = 0;        ///< more for each 32 beyond the first 64, whose list is not at hand
  double l2_bytes_per_us = 0;  ///< thread blocks side by side on the same tiles
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
  ScheduleCost schedule;              ///< CUDA only
};

/// Stored profile of this machine's instruction set with `threads` threads (0: all cores).
/// Constant for a machine type, so plans and bits do not vary from run to run. Throws
/// kInvalidArgument when threads is not in [0, 4096].
DeviceProfile cpu_profile(int threads = 0);
/// The same, with bandwidth, peak and kernel rates measured now (about a second).
DeviceProfile measure_cpu_profile(int threads = 0);
/// Profile of an NVIDIA H100 SXM; plans for it can be made and inspected on any machine.
DeviceProfile h100_profile();

/// Where a profile comes from. Plans do not depend on it; empty strings and 0 are not known.
struct ProfileOrigin {
  std::string device;    ///< the card or the processor
  std::string driver;    ///< CUDA that the driver supports, "13.0"
  double clock_mhz = 0;  ///< of the multiprocessors, or of the cores
  std::string date;      ///< "2026-11-25T07:00:00Z"
  std::string version;   ///< of the Pando that measured
  std::string commit;
};

/// A profile as one JSON object: keys are the names of the fields, with "origin" beside them.
/// Reading it back gives the same bits. Throws kInvalidArgument for a profile that nothing can be
/// planned for.
std::string profile_to_json(const DeviceProfile& profile, const ProfileOrigin& origin = {});
/// The profile of such an object, as `pando calibrate` writes it; `origin`, unless null, gets where
/// it comes from. Throws kInvalidArgument naming the first key that is missing, unknown, or holds
/// what no profile can.
DeviceProfile profile_from_json(std::string_view json, ProfileOrigin* origin = nullptr);

}  // namespace pando
