// measure_cpu_profile: the stored profile with what this machine does right now.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <memory>
#include <new>
#include <string>

#include "cpu/burst.h"
#include "cpu/kernels.h"
#include "cpu/matrix.h"
#include "cpu/probe.h"
#include "cpu/thread_pool.h"
#include "pando/cpu.h"
#include "pando/profile.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace pando {
namespace {

constexpr int64_t kHugePage = 2 << 20;

/// Zeroed memory in huge pages where the system has them, as a KV pool should be: with pages of 4
/// KB two Zen 4 cores read 42 GB/s where they can read 58, which would be too low a roof.
class ReadMemory {
 public:
  explicit ReadMemory(int64_t bytes)
      : data_(static_cast<std::byte*>(::operator new (bytes, std::align_val_t{kHugePage}))) {
#ifdef MADV_HUGEPAGE
    madvise(data_.get(), bytes, MADV_HUGEPAGE);
#endif
    std::memset(data_.get(), 0, bytes);
  }
  const std::byte* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(std::byte* data) const {
      ::operator delete (data, std::align_val_t{kHugePage});
    }
  };
  std::unique_ptr<std::byte, Free> data_;
};

/// Shortest time in nanoseconds of some runs of `work`: other load only ever makes it longer.
template <typename Work>
double best_ns(int runs, Work&& work) {
  using Clock = std::chrono::steady_clock;
  double best = 1e30;
  for (int i = 0; i < runs; ++i) {
    const Clock::time_point begin = Clock::now();
    work();
    best = std::min(best, std::chrono::duration<double, std::nano>(Clock::now() - begin).count());
  }
  return best;
}

/// Nanoseconds a token that `kernel` needs for `rows` rows with KV in cache.
double token_ns(UnitKernel kernel, DType dtype, int32_t rows, int32_t head_dim) {
  constexpr int32_t kTokens = 512;
  KernelProbe probe(dtype, rows, head_dim, kTokens, 0);
  probe.run(kernel);
  return best_ns(12, [&] { probe.run(kernel); }) / kTokens;
}

/// FLOPs per microsecond of one core in bursts of pure arithmetic.
double burst_rate(int64_t (*burst)(int64_t, float&)) {
  float sink = 0.5f;
  int64_t flops = 0;
  const double ns = best_ns(20, [&] { flops = burst(20'000, sink); });
  return 1e3 * static_cast<double>(flops) / ns;
}

/// Fits the formula of KernelRate to three points of the wide kernel and one of the narrow one.
KernelRate measure_rate(const KernelSet& kernels, DType dtype, KernelRate rate) {
  const double t_32 = token_ns(kernels.wide, dtype, 32, 128);
  const double t_128 = token_ns(kernels.wide, dtype, 128, 128);
  const double t_half = token_ns(kernels.wide, dtype, 128, 64);
  rate.softmax_ns = std::max(0.0, (2 * t_half - t_128) / 128);
  rate.wide_ns = std::max(1e-6, ((t_128 - t_32) / 96 - rate.softmax_ns) / 128);
  rate.convert_ns = std::max(0.0, (t_128 - 128 * (128 * rate.wide_ns + rate.softmax_ns)) / 128);
  const double t_granule = token_ns(kernels.wide, dtype, rate.row_granule, 128);
  rate.narrow_ns = token_ns(kernels.narrow, dtype, 4, 128) / (4 * 128);
  rate.narrow_rows =
      std::clamp(static_cast<int32_t>(t_granule / (128 * rate.narrow_ns)), 1, rate.row_granule);
  return rate;
}

constexpr int64_t kPiece = 256 << 10;  // bytes that a thread reads at once

/// Bytes per microsecond that all threads read together, pass after pass over `bytes`.
double read_rate(ThreadPool& pool, const std::byte* data, int64_t bytes) {
  struct Job {
    const std::byte* data;
    int64_t pieces;
    std::atomic<int64_t> next{0};
    std::atomic<float> sink{0};
  };
  const double ns = best_ns(20, [&] {
    Job job{.data = data, .pieces = bytes / kPiece};
    pool.run(
        pool.threads(),
        [](void* context, int) {
          Job& j = *static_cast<Job*>(context);
          for (int64_t i; (i = j.next.fetch_add(1)) < j.pieces;) {
            j.sink = read_burst(j.data + i * kPiece, kPiece);
          }
        },
        &job);
  });
  return 1e3 * static_cast<double>(bytes) / ns;
}

}  // namespace

DeviceProfile measure_cpu_profile(int threads) {
  constexpr int64_t kDramBytes = 192 << 20;
  constexpr int64_t kCacheBytes = 8 << 20;
  DeviceProfile p = cpu_profile(threads);
  const std::string name = "CPU " + std::string(cpu_simd_name()) + " (measured)";
  std::strncpy(p.name.data(), name.c_str(), p.name.size() - 1);
  ThreadPool pool(p.workers);
  {
    const ReadMemory memory(kDramBytes);
    p.dram_bytes_per_us = read_rate(pool, memory.data(), kDramBytes);
    p.cache_bytes_per_us =
        std::max(p.dram_bytes_per_us, read_rate(pool, memory.data(), kCacheBytes));
  }
  const double vector_peak = burst_rate(arithmetic_burst) * p.workers;
  const double dot_peak = dots_available() ? burst_rate(dot_burst) * p.workers : 0;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    const KernelSet kernels = best_kernels(dtype, dtype);
    const MatrixTiles tiles(kernels.tiles);
    KernelRate& rate = p.rates[static_cast<size_t>(dtype)];
    double peak = vector_peak;
    if (dtype == DType::kBF16 && dots_available()) peak = dot_peak;
    if (kernels.tiles) peak = rate.peak_flops_per_us;
    rate = measure_rate(kernels, dtype, rate);
    rate.peak_flops_per_us = peak;
  }
  return p;
}

}  // namespace pando
