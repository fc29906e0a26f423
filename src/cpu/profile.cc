// What the planner is told about this machine's CPU.
#include "pando/profile.h"

#include <cstring>
#include <string>

#include "cpu/kernels.h"
#include "cpu/matrix.h"
#include "cpu/thread_pool.h"
#include "pando/cpu.h"

namespace pando {

DeviceProfile cpu_profile(int threads) {
  DeviceProfile p;
  const std::string name = "CPU " + std::string(cpu_simd_name());
  std::strncpy(p.name.data(), name.c_str(), p.name.size() - 1);
  p.backend = Backend::kCpu;
  p.workers = threads > 0 ? threads : usable_cpus();
  p.row_tile = 128;
  p.kv_tile = 64;
  p.launch_us = 4;
  p.item_us = 0.5;
  p.partial_row_us = 0.1;
  p.dram_bytes_per_us = 16000.0 * p.workers;
  p.cache_bytes_per_us = 22000.0 * p.workers;
  p.cache_bytes = 16'000'000;
  p.peak_flops_per_us = 244e3 * p.workers;
  KernelRate rate;
  rate.narrow_rows = 8;
  rate.row_granule = 16;
  rate.narrow_ns = 0.03;
  rate.convert_ns = 0.04;
  rate.wide_ns = 0.02;
  rate.softmax_ns = 0.3;
  p.rates.fill(rate);
  return p;
}

DeviceProfile measure_cpu_profile(int threads) { return cpu_profile(threads); }

}  // namespace pando
