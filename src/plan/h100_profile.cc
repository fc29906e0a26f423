#include <cstring>

#include "pando/profile.h"

namespace pando {

/// Published rates and the measured ceilings of an H100 SXM (copy 2.9 TB/s, bf16 product 772
/// TFLOP/s). The schedule's costs are of `pando calibrate` on an H200, but for tiles and units,
/// which cost more where memory is busy than in its probes: of six mixtures the one whose plans
/// were fastest (docs/benchmarks/h200-kernel-starts-2026-11-28.txt). The fixed cost is what
/// predictions then lack: 3 us of launch, and the first and the last instructions and reads of a
/// thread block. With it the 28 of docs/benchmarks/h200-bench-2026-11-30.jsonl come within
/// 20 % of the times. Item costs are estimates.
DeviceProfile h100_profile() {
  constexpr double kSmFlopsPerNs = 790e12 / 132 / 1e9;
  DeviceProfile profile;
  std::strncpy(profile.name.data(), "NVIDIA H100 SXM (estimates)", profile.name.size() - 1);
  profile.backend = Backend::kCuda;
  profile.workers = 132;
  profile.row_tile = 128;
  profile.kv_tile = 128;
  profile.launch_us = 5.0;
  profile.item_us = 1.0;
  profile.partial_row_us = 0.02;
  profile.dram_bytes_per_us = 3.0e6;
  profile.cache_bytes_per_us = 5.5e6;
  profile.cache_bytes = 40'000'000;
  KernelRate rate;
  rate.row_granule = 64;
  rate.wide_ns = 4 / kSmFlopsPerNs;
  rate.softmax_ns = 0.05;
  rate.peak_flops_per_us = 790e6;
  profile.rates.fill(rate);
  profile.schedule = {.whole_tile_us = 1.7,
                      .split_tile_us = 1.25,
                      .run_us = 0.3,
                      .unit_us = 3.0,
                      .merge_us = 2.8,
                      .turn_us = 0.18,
                      .lookup_us = 0.5,
                      .l2_bytes_per_us = 8.0e6};
  return profile;
}

}  // namespace pando
