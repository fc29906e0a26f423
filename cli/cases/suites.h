// Named collections of cases with their verdicts: what `pando verify` and the tests run.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "cases/case.h"
#include "cases/generate.h"
#include "cases/runner.h"

namespace pando::cases {

enum class Status { kPassed, kFailed, kSkipped };

/// Verdict on one case: the run that came closest to its tolerance, or the first that failed.
struct Outcome {
  Status status = Status::kPassed;
  std::string note;  ///< what failed, or why it was skipped
  std::string run;   ///< the run that the errors below are of
  double max_err_out = 0;
  double tolerance_out = 0;
  double max_err_lse = 0;
  double tolerance_lse = 0;
  int runs = 0;

  void add(const CheckResult& result, const std::string& run_label);
  /// Keeps the first failure.
  void fail(const std::string& why);
  /// Of an outcome without runs: nothing was tried.
  static Outcome skipped(const std::string& why);
  /// Fails with `why` unless `ok`.
  void expect(bool ok, const std::string& why) {
    if (!ok) fail(why);
  }
  /// Adds another outcome; the sum is skipped only when all its parts are.
  void absorb(const Outcome& other);
};

struct SuiteCase {
  std::string suite;
  std::string name;
  std::function<Outcome(Runner&)> run;
};

struct SuiteOptions {
  bool quick = false;      ///< fewer kinds and smaller sizes
  int random_cases = 200;  ///< of the random suite
  uint64_t seed = 1;       ///< of the random suite: case i uses seed + i
  /// fp8: of all cases. Absent: as the suite has it, which is q's, and fp8 in some random
  /// cases of 16 bits.
  std::optional<DType> kv_dtype = {};
};

/// The suites, in the order in which "all" runs them.
inline constexpr std::string_view kSuiteNames[] = {"seed", "edges", "shapes", "random"};

/// Cases of a suite or of "all"; throws kInvalidArgument for any other name.
std::vector<SuiteCase> suite(std::string_view name, const SuiteOptions& options);

/// Runs a case; what the library throws becomes a failure, or skips the case where a CUDA device
/// does not support it.
Outcome run_case(const SuiteCase& suite_case, Runner& runner);

/// Every sharing mode, in the default and in the batch-invariant way.
std::vector<RunOptions> all_modes(int threads = 0);

/// Checks the forest, every given run against the oracle (on rows that cost at most `budget`), that
/// a repeated run gives the same bits, and that all batch-invariant runs give the same bits. Is
/// skipped when the backend does not support the case.
Outcome verify_case(const Case& problem, const std::vector<RunOptions>& runs, Runner& runner,
                    int64_t budget = int64_t{1} << 26);

std::vector<SuiteCase> seed_suite(const SuiteOptions& options);
std::vector<SuiteCase> edges_suite(const SuiteOptions& options);
std::vector<SuiteCase> misuse_cases();  ///< row 14 of the edges; of any kv_dtype
std::vector<SuiteCase> shapes_suite(const SuiteOptions& options);
std::vector<SuiteCase> random_suite(const SuiteOptions& options);
/// The random forest of a seed within what `backend` supports, and the runs that it is put through.
struct RandomCase {
  Case problem;
  std::vector<RunOptions> runs;
};
RandomCase random_case(uint64_t seed, Backend backend = Backend::kCpu,
                       std::optional<DType> kv_dtype = {});

}  // namespace pando::cases
