#include "plan/check_profile.h"

#include <algorithm>
#include <bit>

#include "core/check.h"

namespace pando {
namespace {

// So that no sum of predicted times overflows.
constexpr double kMostTime = 1e6;
constexpr double kMostRate = 1e12;
// So that no product of sizes overflows.
constexpr int32_t kMostSize = 1 << 16;

void check_size(const char* field, int32_t size, int32_t most = kMostSize) {
  require(size >= 1 && size <= most, "profile.{}: got {}, want a number in [1, {}]", field, size,
          most);
}

void check_time(const char* field, double time) {
  require(time >= 0 && time <= kMostTime, "profile.{}: got {}, want a number in [0, {}]", field,
          time, kMostTime);
}

void check_tile_time(const char* field, double time) {
  require(time > 0, "profile.{}: got {}, want more than 0", field, time);
  check_time(field, time);
}

/// Bytes or FLOPs in a microsecond.
void check_rate(const char* field, double rate) {
  require(rate >= 1 && rate <= kMostRate, "profile.{}: got {}, want a number in [1, {}]", field,
          rate, kMostRate);
}

}  // namespace

void check_profile(const DeviceProfile& profile) {
  require(profile.backend == Backend::kCpu || profile.backend == Backend::kCuda,
          "profile.backend: got code {}, want cpu (0) or cuda (1)",
          static_cast<int32_t>(profile.backend));
  require(std::ranges::find(profile.name, '\0') != profile.name.end(),
          "profile.name: got {} bytes without a 0, want one at their end", profile.name.size());
  // Each thread of a CPU has scratch memory of its own in the workspace.
  check_size("workers", profile.workers,
             profile.backend == Backend::kCpu ? kMostThreads : kMostSize);
  check_size("row_tile", profile.row_tile);
  check_size("kv_tile", profile.kv_tile);
  require(std::has_single_bit(static_cast<uint32_t>(profile.kv_tile)),
          "profile.kv_tile: got {}, want a power of two", profile.kv_tile);
  check_time("launch_us", profile.launch_us);
  check_time("item_us", profile.item_us);
  check_time("partial_row_us", profile.partial_row_us);
  check_rate("dram_bytes_per_us", profile.dram_bytes_per_us);
  check_rate("cache_bytes_per_us", profile.cache_bytes_per_us);
  require(profile.cache_bytes >= 0, "profile.cache_bytes: got {}, want 0 or more",
          profile.cache_bytes);
  for (const KernelRate& rate : profile.rates) {
    require(rate.narrow_rows >= 0, "profile.rates.narrow_rows: got {}, want 0 or more",
            rate.narrow_rows);
    check_size("rates.row_granule", rate.row_granule);
    check_time("rates.narrow_ns", rate.narrow_ns);
    check_time("rates.convert_ns", rate.convert_ns);
    check_time("rates.wide_ns", rate.wide_ns);
    check_time("rates.softmax_ns", rate.softmax_ns);
    check_rate("rates.peak_flops_per_us", rate.peak_flops_per_us);
  }
  const ScheduleCost& cost = profile.schedule;
  if (profile.backend == Backend::kCuda) {
    check_tile_time("schedule.whole_tile_us", cost.whole_tile_us);
    check_tile_time("schedule.split_tile_us", cost.split_tile_us);
    check_rate("schedule.l2_bytes_per_us", cost.l2_bytes_per_us);
  }
  check_time("schedule.run_us", cost.run_us);
  check_time("schedule.unit_us", cost.unit_us);
  check_time("schedule.merge_us", cost.merge_us);
  check_time("schedule.turn_us", cost.turn_us);
  check_time("schedule.lookup_us", cost.lookup_us);
}

}  // namespace pando
