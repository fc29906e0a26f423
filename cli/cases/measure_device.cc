// measure on a CUDA device: replays of a captured call, timed by events.
#include <algorithm>
#include <cstring>

#include "cases/device_case.h"
#include "cases/measure.h"

namespace pando::cases {
namespace {

/// Sequences of some sampled rows; all their rows are checked.
std::vector<int32_t> sequences_of(const Tables& tables, const std::vector<int32_t>& rows) {
  std::vector<int32_t> sequences;
  for (const int32_t row : rows) {
    const auto after = std::upper_bound(tables.q_indptr.begin(), tables.q_indptr.end(), row);
    const auto sequence = static_cast<int32_t>(after - tables.q_indptr.begin()) - 1;
    if (sequences.empty() || sequences.back() != sequence) sequences.push_back(sequence);
  }
  return sequences;
}

/// The rows of `sequences`, one after another.
Output rows_of(const Case& problem, const Output& whole, const std::vector<int32_t>& sequences) {
  const int32_t heads = problem.spec.q_heads;
  const int64_t row_bytes = whole.row_stride * dtype_bytes(problem.spec.dtype);
  std::vector<int32_t> rows;
  for (const int32_t s : sequences) {
    for (int32_t r = problem.tables.q_indptr[s]; r < problem.tables.q_indptr[s + 1]; ++r) {
      rows.push_back(r);
    }
  }
  Output part;
  part.row_stride = whole.row_stride;
  part.head_stride = whole.head_stride;
  part.out = Buffer(rows.size() * row_bytes);
  for (size_t i = 0; i < rows.size(); ++i) {
    std::memcpy(part.out.data() + i * row_bytes, whole.out.data() + rows[i] * row_bytes, row_bytes);
    part.lse.insert(part.lse.end(), whole.lse.begin() + int64_t{rows[i]} * heads,
                    whole.lse.begin() + int64_t{rows[i] + 1} * heads);
  }
  return part;
}

}  // namespace

Measurement measure_on_device(const Case& problem, const MeasureOptions& options, Runner& runner) {
  constexpr int kHostReps = 5;
  Measurement result;
  Forest forest;
  const BatchView batch = problem.tables.batch();
  result.discover_us = best_of(kHostReps, [&] { forest.discover(batch); });
  Planner& planner = runner.planner(options.threads);
  Plan plan, unshared_plan;
  planner.plan(forest, problem.attention(), {.sharing = Sharing::kNone}, unshared_plan);
  planner.plan(forest, problem.attention(), options.plan, plan);
  result.plan_us =
      best_of(kHostReps, [&] { planner.plan(forest, problem.attention(), options.plan, plan); });

  const DeviceStream& stream = runner.cuda().stream;
  const DeviceCase inputs(problem);
  DeviceRun shared(problem, inputs, plan, runner.cuda().executor, false, true);
  DeviceRun unshared(problem, inputs, unshared_plan, runner.cuda().executor, false, true);
  for (DeviceRun* run : {&shared, &unshared}) {
    run->upload(stream);
    run->attend(stream);  // loads the kernel: not counted
    stream.synchronize();
  }
  const auto timed = [&](const std::function<void()>& enqueue) {
    const DeviceGraph graph(stream, enqueue);
    return summarise(time_replays(graph, stream, options.reps, options.cold));
  };
  result.shared = timed([&] { shared.attend(stream); });
  result.timeline = kernel_timeline(plan.header().workers);
  result.unshared = timed([&] { unshared.attend(stream); });
  result.shared_with_upload = timed([&] {
    shared.upload(stream);
    shared.attend(stream);
  });
  count_work(problem, forest, plan, result);

  const std::vector<int32_t> sequences =
      sequences_of(problem.tables, sample_rows(problem, kOracleBudget));
  const Case part = inputs.download(sequences);
  result.check = Reference(part).check(rows_of(problem, shared.download(), sequences));
  return result;
}

std::vector<double> time_plan_on_device(const Case& problem, const Plan& plan, int reps,
                                        Runner& runner) {
  const DeviceStream& stream = runner.cuda().stream;
  const DeviceCase inputs(problem);
  DeviceRun run(problem, inputs, plan, runner.cuda().executor, false, true);
  run.upload(stream);
  run.attend(stream);  // loads the kernel: not counted
  stream.synchronize();
  const DeviceGraph graph(stream, [&] { run.attend(stream); });
  return time_replays(graph, stream, reps, true);
}

}  // namespace pando::cases
