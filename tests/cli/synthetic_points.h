// Points as a card with known constants would give them.
#pragma once

#include <cstdint>
#include <vector>

#include "calibrate/calibrate.h"
#include "cases/rng.h"

namespace pando::calibrate {

/// Constants of no card, far from those that the plans are made with.
inline DeviceProfile secret() {
  DeviceProfile p = h100_profile();
  p.launch_us = 7.25;
  p.dram_bytes_per_us = 4.1e6;
  p.cache_bytes_per_us = 6.6e6;
  p.schedule = {.whole_tile_us = 1.55,
                .split_tile_us = 1.21,
                .run_us = 0.34,
                .unit_us = 1.9,
                .merge_us = 2.8,
                .turn_us = 0.55,
                .lookup_us = 2.1,
                .l2_bytes_per_us = 9.5e6};
  return p;
}

inline ProfileOrigin origin_of(const char* device) {
  ProfileOrigin origin;
  origin.device = device;
  return origin;
}

/// Times as a card with these constants would take, each off by up to `noise` of itself.
inline std::vector<Point> points_of(const DeviceProfile& truth, int32_t multiprocessors,
                                    double noise = 0) {
  cases::Rng rng(1);
  const auto times = [&](double us) {
    std::vector<double> all;
    all.reserve(5);
    for (int i = 0; i < 5; ++i) {
      all.push_back(us * (1 + noise * (static_cast<double>(rng.between(-1000, 1000)) / 1000)));
    }
    return all;
  };
  bool memory = false;
  const Stopwatch stopwatch{
      .plan =
          [&](const cases::Case&, const Plan& plan) {
            const Counts counts = counts_of(plan, h100_profile().schedule);
            double us = 0;
            for (const Constant c : all_constants()) {
              if (!is_rate(c)) us += count_of(counts, c) * field_of(truth, c);
            }
            if (memory) {
              us = truth.launch_us +
                   count_of(counts, Constant::kMemory) / field_of(truth, Constant::kMemory);
            }
            return times(us);
          },
      .reads =
          [&](const Probe& probe) {
            return times(4 + count_of(counts_of_reads(probe), probe.constant) /
                                 field_of(truth, probe.constant));
          }};
  return measure(h100_profile(), probes(multiprocessors), stopwatch,
                 [&](const Probe& probe) { memory = probe.constant == Constant::kMemory; });
}

}  // namespace pando::calibrate
