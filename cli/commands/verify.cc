// pando verify: compares the library with the fp64 oracle, case by case.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "cases/case_file.h"
#include "cases/suites.h"
#include "commands/commands.h"
#include "commands/common.h"
#include "core/check.h"
#include "pando/cpu.h"
#include "pando/cuda.h"
#include "term/progress.h"
#include "term/style.h"

namespace pando::cli {
namespace {

using cases::Outcome;
using cases::Status;
using cases::SuiteCase;

struct Verdict {
  const SuiteCase* suite_case;
  Outcome outcome;
  double seconds;
};

std::string_view status_name(Status status) {
  switch (status) {
    case Status::kPassed: return "passed";
    case Status::kFailed: return "failed";
    case Status::kSkipped: return "skipped";
  }
  return "unknown";
}

/// Errors as a part of what is allowed; the larger of out and lse.
double share_of_tolerance(const Outcome& o) {
  const auto share = [](double error, double allowed) {
    return error == 0 ? 0.0 : allowed > 0 ? error / allowed : INFINITY;
  };
  return std::max(share(o.max_err_out, o.tolerance_out), share(o.max_err_lse, o.tolerance_lse));
}

Json verdict_json(const Verdict& v) {
  const Outcome& o = v.outcome;
  Json json = {{"suite", v.suite_case->suite},
               {"case", v.suite_case->name},
               {"status", status_name(o.status)},
               {"runs", o.runs},
               {"worst_run", o.run},
               {"max_err", o.max_err_out},
               {"tolerance", o.tolerance_out},
               {"max_err_lse", o.max_err_lse},
               {"tolerance_lse", o.tolerance_lse},
               {"seconds", v.seconds}};
  if (!o.note.empty()) json["note"] = o.note;
  return json;
}

std::string case_line(const Verdict& v, const term::Style& style) {
  const Outcome& o = v.outcome;
  std::string status = style.good("pass");
  if (o.status == Status::kFailed) status = style.bad("FAIL");
  if (o.status == Status::kSkipped) status = style.note("skip");
  std::string line =
      fmt::format("{}  {:<7} {:<44}", status, v.suite_case->suite, v.suite_case->name);
  if (o.tolerance_out > 0 || o.tolerance_lse > 0) {
    line += fmt::format(" out {:.2e} / {:.2e}  lse {:.2e} / {:.2e}  {:>3} runs", o.max_err_out,
                        o.tolerance_out, o.max_err_lse, o.tolerance_lse, o.runs);
  }
  if (!o.note.empty()) line += "\n      " + o.note;
  return line;
}

/// One line a suite.
void print_summary(const std::vector<Verdict>& verdicts, const term::Style& style) {
  fmt::print("{}\n",
             style.bold(fmt::format("{:<8} {:>7} {:>7} {:>8} {:>7}   {}", "suite", "passed",
                                    "failed", "skipped", "time", "closest to its tolerance")));
  size_t begin = 0;
  while (begin < verdicts.size()) {
    const std::string& name = verdicts[begin].suite_case->suite;
    size_t end = begin;
    int count[3] = {};
    double seconds = 0;
    const Verdict* worst = nullptr;
    for (; end < verdicts.size() && verdicts[end].suite_case->suite == name; ++end) {
      ++count[static_cast<int>(verdicts[end].outcome.status)];
      seconds += verdicts[end].seconds;
      if (worst == nullptr ||
          share_of_tolerance(verdicts[end].outcome) > share_of_tolerance(worst->outcome)) {
        worst = &verdicts[end];
      }
    }
    const std::string failed = fmt::format("{:>7}", count[1]);
    fmt::print("{:<8} {:>7} {} {:>8} {:>6.1f}s   {:.0f} % of it: {} ({})\n", name, count[0],
               count[1] > 0 ? style.bad(failed) : failed, count[2], seconds,
               100 * share_of_tolerance(worst->outcome), worst->suite_case->name,
               worst->outcome.run);
    begin = end;
  }
}

int64_t count_of(const std::vector<Verdict>& verdicts, Status status) {
  return std::count_if(verdicts.begin(), verdicts.end(),
                       [&](const Verdict& v) { return v.outcome.status == status; });
}

void print_json(const std::vector<Verdict>& verdicts, const Target& target) {
  Json json = target.backend.device_json(target.profile.workers);
  json["backend"] = target.backend.text;
  json["profile"] = target.profile.name.data();
  json.update(Json{{"commit", commit()},
                   {"passed", count_of(verdicts, Status::kPassed)},
                   {"failed", count_of(verdicts, Status::kFailed)},
                   {"skipped", count_of(verdicts, Status::kSkipped)},
                   {"cases", Json::array()}});
  for (const Verdict& verdict : verdicts) json["cases"].push_back(verdict_json(verdict));
  fmt::print("{}\n", json.dump());
}

/// The case of a file; what the library refuses is bad input, not a failed case.
std::vector<SuiteCase> file_suite(const VerifyOptions& options, const DeviceProfile& profile) {
  auto problem = std::make_shared<cases::Case>(cases::read_case(options.file));
  const Forest forest = discover(problem->tables.batch());
  plan(forest, problem->attention(), profile);
  return {{"file", problem->name, [problem](cases::Runner& runner) {
             return cases::verify_case(*problem, cases::all_modes(), runner);
           }}};
}

}  // namespace

int run_verify(const VerifyOptions& options) {
  const Target target = choose_target(options.backend, options.profile, options.threads);
  const ChosenBackend& backend = target.backend;
  require(options.cases >= 1 && options.cases <= 1000000,
          "cases: got {}, want a number in [1, 1000000]", options.cases);
  const std::vector<SuiteCase> suite =
      options.file.empty()
          ? cases::suite(options.suite, {.quick = options.quick,
                                         .random_cases = options.cases,
                                         .seed = options.seed,
                                         .kv_dtype = kv_dtype_from_name(options.kv_dtype)})
          : file_suite(options, target.profile);

  const term::Style style = term::Style::of(1);
  // Without --profile runs with other numbers of threads have stored profiles of their own.
  cases::Runner runner = options.profile.empty() ? cases::Runner(options.threads, backend.backend)
                                                 : cases::Runner(options.threads, target.profile);
  std::vector<Verdict> verdicts;
  term::Progress progress(static_cast<int64_t>(suite.size()));
  for (const SuiteCase& each : suite) {
    progress.start(each.suite + " " + each.name);
    const auto begin = std::chrono::steady_clock::now();
    Outcome outcome = cases::run_case(each, runner);
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - begin;
    verdicts.push_back({&each, std::move(outcome), spent.count()});
    progress.finish_one();
    const bool noteworthy = verdicts.back().outcome.status != Status::kPassed;
    if (!options.json && (options.verbose || noteworthy)) {
      progress.clear();
      fmt::print("{}\n", case_line(verdicts.back(), style));
      std::fflush(stdout);
    }
  }
  progress.clear();

  if (options.json) {
    print_json(verdicts, target);
  } else {
    if (options.verbose) fmt::print("\n");
    print_summary(verdicts, style);
    fmt::print("\n{} of {} cases passed on {}, {}\n", count_of(verdicts, Status::kPassed),
               verdicts.size() - count_of(verdicts, Status::kSkipped), backend.text,
               backend.is_cuda() ? cuda_device_info().name : std::string(cpu_simd_name()));
  }
  return count_of(verdicts, Status::kFailed) > 0 ? 1 : 0;
}

}  // namespace pando::cli
