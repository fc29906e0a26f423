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

/// Kernel rates and peaks of one core with one instruction set.
struct StoredRates {
  std::string_view target;
  std::array<KernelRate, 3> rates;   // fp32, bf16, fp16
  double cache_bytes_per_us = 22e3;  // of one core
};

// Measured on one core with KV in cache, head_dim 64 and 128, and rounded: "AVX3+BF16" on an AMD
// Zen 4 at 3.7 GHz; "AVX3" and the narrower targets on an Intel Sapphire Rapids class Xeon at about
// 3.8 GHz. NEON is an estimate from two 128-bit pipes at 3 GHz.
constexpr StoredRates kStored[] = {
    {"AVX3+BF16",
     {{{12, 16, 0.060, 0.05, 0.037, 0.30, 118e3},
       {14, 16, 0.029, 0.05, 0.018, 0.27, 236e3},
       {14, 16, 0.054, 0.14, 0.037, 0.30, 118e3}}},
     44e3},
    {"AVX3",
     {{{12, 16, 0.042, 0.12, 0.018, 0.30, 244e3},
       {12, 16, 0.041, 0.25, 0.018, 0.30, 244e3},
       {12, 16, 0.042, 0.25, 0.018, 0.30, 244e3}}}},
    {"AVX2",
     {{{6, 8, 0.069, 0.00, 0.041, 0.10, 122e3},
       {6, 8, 0.065, 0.10, 0.041, 0.10, 122e3},
       {6, 8, 0.063, 0.10, 0.041, 0.10, 122e3}}}},
    {"SSE4",
     {{{4, 4, 0.122, 0.00, 0.110, 0.15, 50e3},
       {3, 4, 0.165, 0.25, 0.110, 0.15, 50e3},
       {2, 4, 0.280, 0.40, 0.110, 0.15, 50e3}}}},
    {"NEON",
     {{{4, 4, 0.110, 0.00, 0.100, 0.20, 48e3},
       {4, 4, 0.110, 0.10, 0.100, 0.20, 48e3},
       {4, 4, 0.110, 0.10, 0.100, 0.20, 48e3}}}},
};

// bf16 through AMX tiles on the same core.
constexpr KernelRate kTileRate = {4, 16, 0.047, 0.10, 0.0021, 0.25, 3.4e6};

const StoredRates& stored_rates() {
  const auto find = [](std::string_view target) {
    return std::find_if(std::begin(kStored), std::end(kStored),
                        [&](const StoredRates& stored) { return stored.target == target; });
  };
  const auto* stored = find(cpu_simd_name());
  if (stored == std::end(kStored)) stored = find(vector_target_name());
  return stored == std::end(kStored) ? *find("SSE4") : *stored;
}

}  // namespace

DeviceProfile cpu_profile(int threads) {
  constexpr double kCoreDramBytesPerUs = 16e3;  // as long as there are few cores
  constexpr double kMostDramBytesPerUs = 150e3;
  check_threads(threads);
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
  p.cache_bytes_per_us = stored.cache_bytes_per_us * p.workers;
  p.cache_bytes = 32'000'000;
  p.rates = stored.rates;
  if (tiles_available()) p.rates[static_cast<size_t>(DType::kBF16)] = kTileRate;
  for (KernelRate& rate : p.rates) rate.peak_flops_per_us *= p.workers;
  return p;
}

}  // namespace pando
