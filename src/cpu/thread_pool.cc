#include "cpu/thread_pool.h"

#include <algorithm>

#include "core/check.h"
#include "plan/check_profile.h"

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pando {
namespace {

constexpr uint64_t kOpen = uint64_t{1} << 31;
constexpr uint64_t kInside = kOpen - 1;
constexpr int kSpins = 2000;  // a few tens of microseconds

}  // namespace

void check_threads(int threads) {
  require(threads >= 0 && threads <= kMostThreads, "threads: got {}, want 0 to {}", threads,
          kMostThreads);
}

int usable_cpus() {
#if defined(__linux__)
  for (int capacity = 1024; capacity <= 1 << 20; capacity *= 2) {
    cpu_set_t* const set = CPU_ALLOC(capacity);
    if (set == nullptr) break;
    const size_t bytes = CPU_ALLOC_SIZE(capacity);
    const bool known = sched_getaffinity(0, bytes, set) == 0;
    const int count = known ? CPU_COUNT_S(bytes, set) : 0;
    CPU_FREE(set);
    if (count > 0) return count;
  }
#endif
  return std::max(1u, std::thread::hardware_concurrency());
}

void spin_pause() {
#if defined(__x86_64__)
  _mm_pause();
#else
  std::this_thread::yield();
#endif
}

ThreadPool::ThreadPool(int threads) {
  const int count = threads > 0 ? threads : usable_cpus();
  helpers_.reserve(count - 1);
  for (int worker = 1; worker < count; ++worker) {
    helpers_.emplace_back(&ThreadPool::helper_loop, this, worker);
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true);
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (std::thread& helper : helpers_) helper.join();
}

void ThreadPool::run(int workers, Job job, void* context) {
  workers_ = workers;
  job_ = job;
  context_ = context;
  const uint32_t epoch = epoch_.load() + 1;
  if (workers > 1) {
    gate_.store(uint64_t{epoch} << 32 | kOpen, std::memory_order_release);
    epoch_.store(epoch);
    epoch_.notify_all();
  }
  job(context, 0);
  if (workers > 1) {
    gate_.fetch_and(~kOpen);
    for (int spins = 0; (gate_.load(std::memory_order_acquire) & kInside) != 0; ++spins) {
      if (spins < kSpins) {
        spin_pause();
      } else {
        std::this_thread::yield();
      }
    }
  }
}

bool ThreadPool::enter(uint32_t epoch) {
  uint64_t gate = gate_.load(std::memory_order_acquire);
  while (gate >> 32 == epoch && (gate & kOpen) != 0) {
    if (gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acq_rel)) return true;
  }
  return false;
}

void ThreadPool::helper_loop(int worker) {
  uint32_t seen = 0;
  while (true) {
    for (int spins = 0; epoch_.load() == seen && spins < kSpins; ++spins) spin_pause();
    epoch_.wait(seen);
    seen = epoch_.load();
    if (stop_.load()) return;
    if (!enter(seen)) continue;
    if (worker < workers_) job_(context_, worker);
    gate_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace pando
