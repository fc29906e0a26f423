#include "cases/measure.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <limits>

#include "cases/parallel.h"

namespace pando::cases {
namespace {

constexpr int64_t kFlushBytes = int64_t{256} << 20;
constexpr int64_t kOracleBudget = int64_t{1} << 27;

double microseconds(const std::function<void()>& body) {
  const auto begin = std::chrono::steady_clock::now();
  body();
  const std::chrono::duration<double, std::micro> spent = std::chrono::steady_clock::now() - begin;
  return spent.count();
}

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

/// Pushes everything else out of the caches of all cores. It reads: lines that it wrote would have
/// to be written back while the run that follows is timed.
class Flusher {
 public:
  explicit Flusher(bool enabled) : memory_(enabled ? kFlushBytes : 0) {
    std::memset(memory_.data(), 1, memory_.size());
  }
  void flush() {
    constexpr int64_t kBlock = 1 << 20;
    parallel_for(static_cast<int64_t>(memory_.size()) / kBlock, [&](int64_t block) {
      const std::span<const std::byte> bytes = memory_.span().subspan(block * kBlock, kBlock);
      int64_t sum = 0;
      for (size_t i = 0; i < bytes.size(); i += 64) sum += std::to_integer<int64_t>(bytes[i]);
      sum_.fetch_add(sum, std::memory_order_relaxed);
    });
  }

 private:
  Buffer memory_;
  std::atomic<int64_t> sum_{0};
};

/// A plan with the memory that it runs in.
struct Prepared {
  Plan plan;
  Output output;
  Buffer workspace;
  AttendArgs args;

  Prepared(const Case& problem, const Forest& forest, Planner& planner, Sharing sharing) {
    planner.plan(forest, problem.attention(), {.sharing = sharing}, plan);
    const int64_t states = int64_t{problem.tables.q_rows()} * problem.spec.q_heads;
    output.head_stride = problem.spec.head_dim;
    output.row_stride = problem.spec.q_heads * output.head_stride;
    output.out = Buffer(states * problem.spec.head_dim * dtype_bytes(problem.spec.dtype));
    output.lse.resize(states);
    workspace = Buffer(plan.workspace_bytes());
    args.q = problem.q_view();
    args.k = problem.k.data();
    args.v = problem.v.data();
    args.kv = problem.kv();
    args.page_ids = problem.tables.page_ids;
    args.out = {output.out.data(), output.row_stride, output.head_stride};
    args.lse = output.lse.data();
    args.workspace = workspace.span();
  }
};

}  // namespace

Measurement measure(const Case& problem, const MeasureOptions& options, Runner& runner) {
  constexpr int kHostReps = 5;
  Measurement result;
  CpuExecutor& executor = runner.executor(options.threads);
  Planner& planner = runner.planner(options.threads);

  Forest forest;
  const BatchView batch = problem.tables.batch();
  result.discover_us = best_of(kHostReps, [&] { forest.discover(batch); });
  Prepared shared(problem, forest, planner, Sharing::kAuto);
  Prepared unshared(problem, forest, planner, Sharing::kNone);
  result.plan_us =
      best_of(kHostReps, [&] { planner.plan(forest, problem.attention(), {}, shared.plan); });

  // The first runs touch fresh memory and wake the threads: not counted.
  attend(shared.plan, shared.args, executor);
  attend(unshared.plan, unshared.args, executor);
  Flusher flusher(options.cold);
  std::vector<double> shared_us, unshared_us;
  for (int i = 0; i < options.reps; ++i) {
    flusher.flush();
    shared_us.push_back(microseconds([&] { attend(shared.plan, shared.args, executor); }));
    flusher.flush();
    unshared_us.push_back(microseconds([&] { attend(unshared.plan, unshared.args, executor); }));
  }
  result.shared = summarise(shared_us);
  result.unshared = summarise(unshared_us);

  int64_t unique_tokens = 0;
  for (const Segment& segment : forest.segments()) unique_tokens += segment.tokens();
  const int64_t token_bytes =
      2 * int64_t{problem.spec.kv_heads} * problem.spec.head_dim * dtype_bytes(problem.spec.dtype);
  result.bytes = unique_tokens * token_bytes + shared.plan.cost().io_bytes;
  result.flops = shared.plan.cost().flops;
  result.check = Reference(problem, sample_rows(problem, kOracleBudget)).check(shared.output);
  return result;
}

}  // namespace pando::cases
