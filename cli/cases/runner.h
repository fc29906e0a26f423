// Runs a case through discover, plan and attend, and judges the result.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cases/case.h"
#include "cases/device.h"
#include "cases/output.h"
#include "pando/cpu.h"
#include "pando/forest.h"
#include "pando/plan.h"
#include "pando/profile.h"
#include "reference/oracle.h"

namespace pando::cases {

/// How one run of a case differs from another.
struct RunOptions {
  PlanOptions plan;
  int threads = 0;       ///< or thread blocks; 0: the runner's default
  bool strided = false;  ///< gaps between the rows and heads of out
  bool want_lse = true;
};
/// "auto", "none", "all", with "+invariant", "+strided", "+nolse" and "/threads".
std::string run_name(const RunOptions& options);
std::string_view sharing_name(Sharing sharing);

/// What runs on a CUDA device have in common.
struct Cuda {
  CudaExecutor executor;
  DeviceStream stream;
};

/// Keeps executors, planner scratch and forest between runs, as a serving loop does.
class Runner {
 public:
  using HostAttend = std::function<void(const Plan&, const AttendArgs&)>;

  /// 0: all cores, or one thread block for each multiprocessor.
  explicit Runner(int default_threads = 0, Backend backend = Backend::kCpu);
  /// Plans for `profile`; with more than 0 threads, for so many of its workers at most.
  Runner(int default_threads, const DeviceProfile& profile);
  /// Plans for `profile`, of any backend, and hands them and tensors in host memory to `attend`.
  Runner(const DeviceProfile& profile, HostAttend attend);
  ~Runner();

  Backend backend() const { return backend_; }
  /// `want`, or the next larger head_dim that the backend supports.
  int32_t least_head_dim(int32_t want) const;

  /// Runs the case with out, lse and workspace full of NaN. Throws what the library throws.
  Output attend(const Case& problem, const RunOptions& options);

  const Forest& forest() const { return forest_; }  ///< of the last run
  const Plan& plan() const { return plan_; }        ///< of the last run
  CpuExecutor& executor(int threads);
  /// The executor and stream of the CUDA device.
  Cuda& cuda();
  Planner& planner(int threads);

 private:
  int resolve(int threads) const { return threads == 0 ? default_threads_ : threads; }
  DeviceProfile profile(int threads) const;

  int default_threads_;
  Backend backend_;
  std::optional<DeviceProfile> profile_;  ///< given, not asked of the device
  HostAttend host_attend_;
  std::unique_ptr<Cuda> cuda_;  ///< made when first needed
  std::map<int, std::unique_ptr<CpuExecutor>> executors_;
  std::map<int, std::unique_ptr<Planner>> planners_;
  Forest forest_;
  Plan plan_;
};

/// The oracle's and the rounding reference's answer on some rows: computed once, by all cores, and
/// then compared with as many outputs as wanted. Verdicts equal check_result's.
class Reference {
 public:
  /// `q_rows` empty: all rows.
  explicit Reference(const Case& problem, std::vector<int32_t> q_rows = {});
  CheckResult check(const Output& output) const;

 private:
  const Case& problem_;
  ReferenceResult exact_;
  ErrorStats rounded_;
};

/// Rows such that the oracle multiplies at most `budget` pairs of elements: all, or the first, the
/// last and random ones between.
std::vector<int32_t> sample_rows(const Case& problem, int64_t budget, uint64_t seed = 0);

}  // namespace pando::cases
