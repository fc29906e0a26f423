// The CPU backend.
#pragma once

#include <memory>
#include <string_view>

#include "pando/attention.h"
#include "pando/plan.h"

namespace pando {

/// A pool of threads that runs plans. Not copyable; one call at a time.
class CpuExecutor {
 public:
  /// 0: as many threads as this process may run on.
  explicit CpuExecutor(int threads = 0);
  ~CpuExecutor();
  CpuExecutor(const CpuExecutor&) = delete;
  CpuExecutor& operator=(const CpuExecutor&) = delete;

  int threads() const;

 private:
  friend void attend(const Plan&, const AttendArgs&, CpuExecutor&);
  struct State;
  std::unique_ptr<State> state_;
};

/// Computes attention of `plan` on the CPU: out and, when given, lse.
///
/// Every argument is checked before anything is written; throws Error. Does not allocate.
/// Returns when the result is complete. The same plan and inputs give the same bits.
void attend(const Plan& plan, const AttendArgs& args, CpuExecutor& executor);

/// The SIMD kernels in use on this machine, for reports: "AVX3", "AVX2", "NEON"; "AVX3+AMX" and
/// "AVX3+BF16" with matrix tiles and with dot products of bf16.
std::string_view cpu_simd_name();

}  // namespace pando
