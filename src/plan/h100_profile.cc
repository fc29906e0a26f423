#include <cstring>

#include "pando/profile.h"

namespace pando {

/// Published rates and the measured ceilings of an H100 SXM (copy 2.9 TB/s, bf16 product 772
/// TFLOP/s). The fixed cost is what predictions otherwise lacked on an H200, on 22 of 23 shapes
/// within 20 % (docs/benchmarks/h200-bench-2026-11-28.jsonl): 3 us of launch, and the first and the
/// last instructions and reads of a thread block. Item costs are estimates.
DeviceProfile h100_profile() {
  constexpr double kSmFlopsPerNs = 790e12 / 132 / 1e9;
  DeviceProfile profile;
  std::strncpy(profile.name.data(), "NVIDIA H100 SXM (estimates)", profile.name.size() - 1);
  profile.backend = Backend::kCuda;
  profile.workers = 132;
  profile.row_tile = 128;
  profile.kv_tile = 128;
  profile.launch_us = 10.5;
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
                      .split_tile_us = 1.4,
                      .run_us = 0.2,
                      .unit_us = 1.5,
                      .merge_us = 3.5,
                      .turn_us = 0.4,
                      .lookup_us = 2.8,
                      .l2_bytes_per_us = 8.0e6};
  return profile;
}

}  // namespace pando
