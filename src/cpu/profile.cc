// What the planner is told about this machine's CPU.
#include "pando/profile.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <string_view>

#include "cpu/kernels.h"
#include "cpu/matrix.h"
#include "cpu/thread_pool.h"
#include "pando/cpu.h"

namespace pando {
namespace {

/// Kernel rates and peak of one core with one instruction set.
struct StoredRates {
  std::string_view target;
  double peak_flops_per_us;
  std::array<KernelRate, 3> rates;  // fp32, bf16, fp16
};

// Measured with cpu_attend_bench on one core of an Intel Sapphire Rapids class Xeon at about 3.8
// GHz, KV in cache, head_dim 64 and 128, and rounded; the narrower targets on the same core. NEON
// is an estimate from two 128-bit pipes at 3 GHz.
constexpr StoredRates kStored[] = {
    {"AVX3",
     244e3,
     {{{12, 16, 0.042, 0.12, 0.018, 0.30},
       {12, 16, 0.041, 0.25, 0.018, 0.30},
       {12, 16, 0.042, 0.25, 0.018, 0.30}}}},
    {"AVX2",
     122e3,
     {{{6, 8, 0.069, 0.00, 0.041, 0.10},
       {6, 8, 0.065, 0.10, 0.041, 0.10},
       {6, 8, 0.063, 0.10, 0.041, 0.10}}}},
    {"SSE4",
     50e3,
     {{{4, 4, 0.122, 0.00, 0.110, 0.15},
       {3, 4, 0.165, 0.25, 0.110, 0.15},
       {2, 4, 0.280, 0.40, 0.110, 0.15}}}},
    {"NEON",
     48e3,
     {{{4, 4, 0.110, 0.00, 0.100, 0.20},
       {4, 4, 0.110, 0.10, 0.100, 0.20},
       {4, 4, 0.110, 0.10, 0.100, 0.20}}}},
};

// bf16 through AMX tiles on the same core.
constexpr double kMatrixPeakFlopsPerUs = 3.4e6;
constexpr KernelRate kMatrixRate = {4, 16, 0.047, 0.10, 0.0021, 0.25};

const StoredRates& stored_rates() {
  const std::string_view target = vector_target_name();
  for (const StoredRates& stored : kStored) {
    if (stored.target == target) return stored;
  }
  return kStored[2];
}

}  // namespace

DeviceProfile cpu_profile(int threads) {
  constexpr double kCoreDramBytesPerUs = 16e3;  // as long as there are few cores
  constexpr double kMostDramBytesPerUs = 150e3;
  constexpr double kCoreCacheBytesPerUs = 22e3;
  const StoredRates& stored = stored_rates();
  DeviceProfile p;
  const std::string name = "CPU " + std::string(cpu_simd_name());
  std::strncpy(p.name.data(), name.c_str(), p.name.size() - 1);
  p.backend = Backend::kCpu;
  p.workers = threads > 0 ? threads : usable_cpus();
  p.row_tile = 128;
  p.kv_tile = 64;
  p.launch_us = 2;
  p.item_us = 0.4;
  p.partial_row_us = 0.2;  // from replayed traces, where much is merged for little saved
  p.dram_bytes_per_us = std::min(kCoreDramBytesPerUs * p.workers, kMostDramBytesPerUs);
  p.cache_bytes_per_us = kCoreCacheBytesPerUs * p.workers;
  p.cache_bytes = 32'000'000;
  p.rates = stored.rates;
  for (KernelRate& rate : p.rates) rate.peak_flops_per_us = stored.peak_flops_per_us * p.workers;
  if (tiles_available()) {
    KernelRate& rate = p.rates[static_cast<size_t>(DType::kBF16)];
    rate = kMatrixRate;
    rate.peak_flops_per_us = kMatrixPeakFlopsPerUs * p.workers;
  }
  return p;
}

}  // namespace pando
