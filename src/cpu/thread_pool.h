// A persistent pool of threads for jobs that are claimed piecewise.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace pando {

/// CPUs that this process may run on.
int usable_cpus();

/// Throws kInvalidArgument for a number of threads that nobody means. 0: all that may be used.
void check_threads(int threads);

/// One short pause of a spinning thread.
void spin_pause();

/// Threads that spin briefly after each job and then sleep. One job at a time.
class ThreadPool {
 public:
  using Job = void (*)(void* context, int worker);

  /// `threads` including the caller of run; 0: as many as this process may run on.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(helpers_.size()) + 1; }

  /// Runs job(context, 0) on the caller, and job(context, w) for w in [1, workers) on those helpers
  /// that arrive while it runs: the job hands out its work by claiming, so nobody waits for a
  /// thread that is still asleep. Returns when all that entered have left. Does not allocate.
  void run(int workers, Job job, void* context);

 private:
  void helper_loop(int worker);
  bool enter(uint32_t epoch);

  // gate_: epoch in the upper half, then one bit "open", then the number of helpers inside.
  std::atomic<uint64_t> gate_{0};
  std::atomic<uint32_t> epoch_{0};
  std::atomic<bool> stop_{false};
  int workers_ = 0;
  Job job_ = nullptr;
  void* context_ = nullptr;
  std::vector<std::thread> helpers_;
};

}  // namespace pando
