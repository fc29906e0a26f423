#include "cases/measure.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <functional>
#include <limits>
#include <vector>

#include "cases/host_run.h"

namespace pando::cases {
namespace {

constexpr size_t kColdBytes = size_t{640} << 20;  ///< more than any cache in sight

double microseconds(const std::function<void()>& body) {
  const auto begin = std::chrono::steady_clock::now();
  body();
  const std::chrono::duration<double, std::micro> spent = std::chrono::steady_clock::now() - begin;
  return spent.count();
}

/// Copies of a case's K and V, taken in turn as the layers of a model are: a run finds its KV cold,
/// but code, threads and workspace as warm as a decode loop keeps them.
class KvCopies {
 public:
  KvCopies(const Case& problem, bool cold)
      : bytes_(problem.k.size()),
        copies_(cold ? std::max<size_t>(1, kColdBytes / std::max<size_t>(2 * bytes_, 1)) : 1),
        memory_(2 * bytes_ * copies_) {
    for (size_t i = 0; i < copies_; ++i) {
      std::memcpy(keys(i), problem.k.data(), bytes_);
      std::memcpy(values(i), problem.v.data(), bytes_);
    }
  }

  /// Points `args` to the copy whose turn it is.
  void take(AttendArgs& args) {
    args.k = keys(next_);
    args.v = values(next_);
    next_ = (next_ + 1) % copies_;
  }

 private:
  std::byte* keys(size_t copy) { return memory_.data() + 2 * copy * bytes_; }
  std::byte* values(size_t copy) { return keys(copy) + bytes_; }

  size_t bytes_;
  size_t copies_;
  Buffer memory_;  ///< of all copies, as the one pool of an engine
  size_t next_ = 0;
};

Plan make_plan(const Case& problem, const Forest& forest, Planner& planner,
               const PlanOptions& how) {
  Plan plan;
  planner.plan(forest, problem.attention(), how, plan);
  return plan;
}

/// A plan with the memory that it runs in.
struct Prepared {
  Plan plan;
  HostRun run;
  AttendArgs args;

  Prepared(const Case& problem, const Forest& forest, Planner& planner, const PlanOptions& how)
      : plan(make_plan(problem, forest, planner, how)),
        run(problem, plan, false, true),
        args(run.args()) {}
};

}  // namespace

double best_of(int times, const std::function<void()>& body) {
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < times; ++i) best = std::min(best, microseconds(body));
  return best;
}

Timing summarise(std::vector<double> us) {
  std::sort(us.begin(), us.end());
  const size_t half = us.size() / 2;
  const double median = us.size() % 2 == 1 ? us[half] : (us[half - 1] + us[half]) / 2;
  return {median, us.front(), static_cast<int>(us.size())};
}

PlanningTimes measure_planning(const Case& problem, const PlanOptions& options, int reps,
                               Planner& planner, Plan& plan) {
  const BatchView batch = problem.tables.batch();
  // The step before: every sequence has one token fewer.
  std::vector<int32_t> before = problem.tables.kv_len;
  for (int32_t& tokens : before) tokens = std::max(tokens - 1, 0);
  BatchView batch_before = batch;
  batch_before.kv_len = before;

  PlanningTimes times;
  times.page_ids = static_cast<int64_t>(problem.tables.page_ids.size());
  Forest forest;
  std::vector<double> discover_us, update_us, plan_us;
  for (int i = -1; i < reps; ++i) {
    const double discovered = microseconds([&] { forest.discover(batch); });
    forest.discover(batch_before);
    const double updated = microseconds([&] { forest.update(batch); });
    const double planned =
        microseconds([&] { planner.plan(forest, problem.attention(), options, plan); });
    if (i < 0) continue;  // memory grows: not counted
    discover_us.push_back(discovered);
    update_us.push_back(updated);
    plan_us.push_back(planned);
  }
  times.discover = summarise(discover_us);
  times.update = summarise(update_us);
  times.plan = summarise(plan_us);
  return times;
}

void count_work(const Case& problem, const Forest& forest, const Plan& plan, Measurement& result) {
  int64_t unique_tokens = 0;
  for (const Segment& segment : forest.segments()) unique_tokens += segment.tokens();
  const int64_t token_bytes =
      2 * int64_t{problem.spec.kv_heads} * problem.spec.head_dim * dtype_bytes(problem.kv_dtype());
  result.bytes = unique_tokens * token_bytes + plan.cost().io_bytes;
  result.flops = plan.cost().flops;
  result.plan_bytes = plan.header().total_bytes;
  result.predicted_us = plan.cost().predicted_us;
}

Measurement measure(const Case& problem, const MeasureOptions& options, Runner& runner) {
  if (runner.backend() == Backend::kCuda) return measure_on_device(problem, options, runner);
  constexpr int kHostReps = 5;
  Measurement result;
  CpuExecutor& executor = runner.executor(options.threads);
  Planner& planner = runner.planner(options.threads);

  Forest forest;
  const BatchView batch = problem.tables.batch();
  result.discover_us = best_of(kHostReps, [&] { forest.discover(batch); });
  Prepared shared(problem, forest, planner, options.plan);
  Prepared unshared(problem, forest, planner, {.sharing = Sharing::kNone});
  result.plan_us = best_of(
      kHostReps, [&] { planner.plan(forest, problem.attention(), options.plan, shared.plan); });

  // The first runs touch fresh memory and wake the threads: not counted.
  attend(shared.plan, shared.args, executor);
  attend(unshared.plan, unshared.args, executor);
  KvCopies copies(problem, options.cold);
  std::vector<double> shared_us, unshared_us;
  for (int i = 0; i < options.reps; ++i) {
    copies.take(shared.args);
    shared_us.push_back(microseconds([&] { attend(shared.plan, shared.args, executor); }));
    copies.take(unshared.args);
    unshared_us.push_back(microseconds([&] { attend(unshared.plan, unshared.args, executor); }));
  }
  result.shared = summarise(shared_us);
  result.unshared = summarise(unshared_us);

  count_work(problem, forest, shared.plan, result);
  result.check = Reference(problem, sample_rows(problem, kOracleBudget)).check(shared.run.take());
  return result;
}

std::vector<double> time_plan(const Case& problem, const Plan& plan, int reps, Runner& runner) {
  if (runner.backend() == Backend::kCuda) return time_plan_on_device(problem, plan, reps, runner);
  CpuExecutor& executor = runner.executor(0);
  HostRun run(problem, plan, false, true);
  AttendArgs args = run.args();
  attend(plan, args, executor);  // touches fresh memory and wakes the threads: not counted
  KvCopies copies(problem, true);
  std::vector<double> us;
  for (int i = 0; i < reps; ++i) {
    copies.take(args);
    us.push_back(microseconds([&] { attend(plan, args, executor); }));
  }
  return us;
}

}  // namespace pando::cases
