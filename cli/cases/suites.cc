#include "cases/suites.h"

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <optional>

#include "core/check.h"

namespace pando::cases {
namespace {

/// How much of its tolerance a result uses; above 1 it failed.
double strain(double error, double allowed) {
  if (error == 0) return 0;
  return allowed > 0 ? error / allowed : std::numeric_limits<double>::infinity();
}

double strain(const Outcome& o) {
  return std::max(strain(o.max_err_out, o.tolerance_out), strain(o.max_err_lse, o.tolerance_lse));
}

void append(std::vector<SuiteCase>& to, std::vector<SuiteCase> from) {
  std::move(from.begin(), from.end(), std::back_inserter(to));
}

}  // namespace

void Outcome::fail(const std::string& why) {
  if (status == Status::kFailed) return;
  status = Status::kFailed;
  note = why;
}

Outcome Outcome::skipped(const std::string& why) {
  Outcome outcome;
  outcome.status = Status::kSkipped;
  outcome.note = why;
  return outcome;
}

void Outcome::absorb(const Outcome& other) {
  if (other.status == Status::kSkipped) {
    if (runs == 0 && status == Status::kPassed) *this = other;
    return;
  }
  if (status == Status::kSkipped) {
    status = Status::kPassed;
    note.clear();
  }
  if (other.status == Status::kFailed) fail(other.note);
  if (run.empty() || strain(other) > strain(*this)) {
    run = other.run;
    max_err_out = other.max_err_out;
    tolerance_out = other.tolerance_out;
    max_err_lse = other.max_err_lse;
    tolerance_lse = other.tolerance_lse;
  }
  runs += other.runs;
}

void Outcome::add(const CheckResult& result, const std::string& run_label) {
  Outcome one;
  one.run = run_label;
  one.max_err_out = result.got.max_err_out;
  one.tolerance_out = result.allowed.out;
  one.max_err_lse = result.got.max_err_lse;
  one.tolerance_lse = result.allowed.lse;
  one.runs = 1;
  if (!std::isfinite(one.tolerance_out) || !std::isfinite(one.tolerance_lse)) {
    one.fail(run_label + ": the reference itself overflows, so nothing was compared");
  }
  if (!result.passed()) {
    one.fail(fmt::format("{}: error of out {:.3g} (allowed {:.3g}), of lse {:.3g} ({:.3g})",
                         run_label, one.max_err_out, one.tolerance_out, one.max_err_lse,
                         one.tolerance_lse));
  }
  absorb(one);
}

std::vector<RunOptions> all_modes(int threads) {
  std::vector<RunOptions> runs;
  for (const bool invariant : {false, true}) {
    for (const Sharing sharing : {Sharing::kAuto, Sharing::kNone, Sharing::kAll}) {
      RunOptions run;
      run.plan.sharing = sharing;
      run.plan.batch_invariant = invariant;
      run.threads = threads;
      runs.push_back(run);
    }
  }
  return runs;
}

namespace {

/// What a CUDA device says that does not support a case; empty when it does.
std::string unsupported(const Case& problem, Runner& runner) {
  if (runner.backend() == Backend::kCpu) return "";
  try {
    Plan unused;
    runner.planner(0).plan(discover(problem.tables.batch()), problem.attention(), {}, unused);
    return "";
  } catch (const Error& error) {
    if (error.code != ErrorCode::kUnsupported) throw;
    return error.message;
  }
}

}  // namespace

Outcome verify_case(const Case& problem, const std::vector<RunOptions>& runs, Runner& runner,
                    int64_t budget) {
  if (const std::string why = unsupported(problem, runner); !why.empty()) {
    return Outcome::skipped(why);
  }
  Outcome outcome;
  const Reference reference(problem, sample_rows(problem, budget));
  std::optional<Output> invariant;
  bool first = true;
  for (const RunOptions& options : runs) {
    const std::string label = run_name(options);
    Output output = runner.attend(problem, options);
    if (first) {
      outcome.expect(as_expected(runner.forest()) == expected_forest(problem.tables),
                     "discover: the forest is not the expected one");
      outcome.expect(same_bits(problem, output, runner.attend(problem, options)),
                     label + ": a second run gives other bits");
      first = false;
    }
    outcome.add(reference.check(output), label);
    outcome.expect(output.overrun.empty(), label + ": " + output.overrun);
    if (!options.plan.batch_invariant) continue;
    if (!invariant) {
      invariant = std::move(output);
    } else {
      outcome.expect(same_bits(problem, *invariant, output),
                     label + ": other bits than another batch-invariant run");
    }
  }
  return outcome;
}

Outcome run_case(const SuiteCase& suite_case, Runner& runner) {
  try {
    return suite_case.run(runner);
  } catch (const Error& error) {
    if (runner.backend() == Backend::kCuda && error.code == ErrorCode::kUnsupported) {
      return Outcome::skipped(error.message);
    }
    Outcome outcome;
    outcome.fail("unexpected error: " + error.message);
    return outcome;
  }
}

std::vector<SuiteCase> suite(std::string_view name, const SuiteOptions& options) {
  if (name == "seed") return seed_suite(options);
  if (name == "edges") return edges_suite(options);
  if (name == "shapes") return shapes_suite(options);
  if (name == "random") return random_suite(options);
  if (name == "all") {
    std::vector<SuiteCase> cases;
    for (const std::string_view each : kSuiteNames) append(cases, suite(each, options));
    return cases;
  }
  fail(ErrorCode::kInvalidArgument, "suite: got \"{}\", want one of {}, all", name,
       fmt::join(kSuiteNames, ", "));
}

}  // namespace pando::cases
