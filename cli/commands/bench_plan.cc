// pando bench --plan-only: what planning costs the host, for any profile, with no K and V.
#include <fmt/format.h>

#include "cases/files.h"
#include "commands/bench_parts.h"
#include "core/check.h"
#include "pando/version.h"
#include "term/style.h"

namespace pando::cli {
namespace {

constexpr int kDefaultReps = 25;

void print_row(const cases::Shape& shape, const cases::PlanningTimes& t, const Plan& plan) {
  fmt::print("{:<16} {:>10} {:>10} {:>10} {:>10} {:>10} {:>9} {:>9}\n", shape.name, t.page_ids,
             term::time_text(t.discover.median_us), term::time_text(t.update.median_us),
             term::time_text(t.plan.median_us),
             term::time_text(t.update.median_us + t.plan.median_us),
             term::time_text(plan.cost().predicted_us), term::time_text(plan.cost().roof_us));
}

}  // namespace

int run_plan_bench(const BenchOptions& options) {
  const ChosenBackend host = choose_backend("cpu");
  check_threads(host, options.threads);
  const int reps = options.reps.value_or(kDefaultReps);
  const std::string name = options.profile.empty() ? "cpu" : options.profile;
  const DeviceProfile profile = profile_of_name(name, options.threads);
  const std::string planned_for = name == "cpu" || name == "h100" ? name : profile.name.data();
  const DType dtype = dtype_from_name(options.dtype);
  const std::optional<DType> kv_dtype = kv_dtype_from_name(options.kv_dtype);
  std::optional<cases::AtomicFile> file;
  if (!options.out.empty()) file.emplace(options.out);

  Planner planner(profile);
  const term::Style style = term::Style::of(1);
  if (!options.json) {
    fmt::print("plans for {}, on one thread of {}\n\n{}\n", planned_for, cpu_name(),
               style.bold(fmt::format("{:<16} {:>10} {:>10} {:>10} {:>10} {:>10} {:>9} {:>9}",
                                      "shape", "page ids", "discover", "update", "plan", "a step",
                                      "predicted", "roof")));
  }
  for (const cases::Shape& shape : chosen_shapes(options)) {
    const cases::Case problem = cases::shape_tables(shape, dtype, order_from_name(options.layout),
                                                    options.page_tokens, 0, kv_dtype);
    Plan plan;
    const cases::PlanningTimes t =
        cases::measure_planning(problem, plan_options(options), reps, planner, plan);
    Json record = shape_json(shape, options);
    record.update(Json{{"planned_for", planned_for}, {"host", cpu_name()}});
    if (const double mhz = cpu_clock_mhz(); mhz > 0) record["clock_mhz"] = mhz;
    record.update(Json{{"date", now_utc()},
                       {"version", version()},
                       {"commit", commit()},
                       {"command", options.command},
                       {"batch_invariant", options.batch_invariant},
                       {"cut_tokens", plan.header().cut_tokens},
                       {"page_ids", t.page_ids},
                       {"discover_us", timing_json(t.discover)},
                       {"update_us", timing_json(t.update)},
                       {"plan_us", timing_json(t.plan)},
                       {"plan_bytes", plan.header().total_bytes},
                       {"predicted_us", plan.cost().predicted_us},
                       {"predicted_unshared_us", plan.cost().predicted_unshared_us},
                       {"roof_us", plan.cost().roof_us}});
    const std::string line = record.dump() + "\n";
    if (file) file->write(line);
    if (options.json) {
      fmt::print("{}", line);
    } else {
      print_row(shape, t, plan);
    }
    std::fflush(stdout);
  }
  if (file) file->commit();
  return 0;
}

}  // namespace pando::cli
