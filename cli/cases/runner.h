// Runs a case through discover, plan and attend, and judges the result.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "cases/buffer.h"
#include "cases/case.h"
#include "pando/cpu.h"
#include "pando/forest.h"
#include "pando/plan.h"
#include "reference/oracle.h"

namespace pando::cases {

/// How one run of a case differs from another.
struct RunOptions {
  PlanOptions plan;
  int threads = 0;       ///< 0: the runner's default
  bool strided = false;  ///< gaps between the rows and heads of out
  bool want_lse = true;
};
/// "auto", "none", "all", with "+invariant", "+strided", "+nolse" and "/threads".
std::string run_name(const RunOptions& options);
std::string_view sharing_name(Sharing sharing);

/// What attend wrote.
struct Output {
  Buffer out;
  int64_t row_stride = 0;
  int64_t head_stride = 0;
  std::vector<float> lse;  ///< empty when not asked for
  std::string overrun;     ///< what was written that should not have been; empty: nothing

  ConstRowsView view() const { return {out.data(), row_stride, head_stride}; }
  const float* lse_or_null() const { return lse.empty() ? nullptr : lse.data(); }
};

/// Whether two outputs of a case hold the same bits.
bool same_bits(const Case& problem, const Output& a, const Output& b);
/// Whether two query rows of two outputs hold the same bits; the cases must agree in their spec.
bool same_row_bits(const Case& problem, const Output& a, int32_t row_a, const Output& b,
                   int32_t row_b);

/// Keeps executors, planner scratch and forest between runs, as a serving loop does.
class Runner {
 public:
  /// 0: all cores.
  explicit Runner(int default_threads = 0) : default_threads_(default_threads) {}

  /// Runs the case with out, lse and workspace full of NaN. Throws what the library throws.
  Output attend(const Case& problem, const RunOptions& options);

  const Forest& forest() const { return forest_; }  ///< of the last run
  const Plan& plan() const { return plan_; }        ///< of the last run
  CpuExecutor& executor(int threads);
  Planner& planner(int threads);

 private:
  int resolve(int threads) const { return threads == 0 ? default_threads_ : threads; }

  int default_threads_;
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
