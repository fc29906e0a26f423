#include "cases/runner.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "cases/device_case.h"
#include "cases/host_run.h"
#include "cases/parallel.h"
#include "cases/rng.h"
#include "core/check.h"
#include "core/mask.h"
#include "pando/profile.h"
#include "plan/cuda_shapes.h"

namespace pando::cases {
std::string_view sharing_name(Sharing sharing) {
  switch (sharing) {
    case Sharing::kAuto: return "auto";
    case Sharing::kNone: return "none";
    case Sharing::kAll: return "all";
  }
  return "unknown";
}

std::string run_name(const RunOptions& options) {
  std::string name(sharing_name(options.plan.sharing));
  if (options.plan.batch_invariant) name += "+invariant";
  if (options.strided) name += "+strided";
  if (!options.want_lse) name += "+nolse";
  if (options.threads > 0) name += fmt::format("/{}", options.threads);
  return name;
}

Runner::Runner(int default_threads, Backend backend)
    : default_threads_(default_threads), backend_(backend) {}
Runner::Runner(int default_threads, const DeviceProfile& profile)
    : default_threads_(default_threads), backend_(profile.backend), profile_(profile) {}
Runner::Runner(const DeviceProfile& profile, HostAttend attend)
    : default_threads_(0),
      backend_(profile.backend),
      profile_(profile),
      host_attend_(std::move(attend)) {}
Runner::~Runner() = default;

int32_t Runner::least_head_dim(int32_t want) const {
  if (backend_ == Backend::kCpu) return want;
  int32_t least = 0;
  for (const CudaShape& shape : kCudaShapes) {
    if (shape.head_dim >= want && (least == 0 || shape.head_dim < least)) least = shape.head_dim;
  }
  return least == 0 ? want : least;
}

Cuda& Runner::cuda() {
  if (!cuda_) cuda_ = std::make_unique<Cuda>();
  return *cuda_;
}

DeviceProfile Runner::profile(int threads) const {
  if (!profile_ && backend_ == Backend::kCpu) return cpu_profile(resolve(threads));
  DeviceProfile profile = profile_ ? *profile_ : cuda_profile();
  if (resolve(threads) > 0) profile.workers = std::min(profile.workers, resolve(threads));
  return profile;
}

CpuExecutor& Runner::executor(int threads) {
  auto& slot = executors_[resolve(threads)];
  if (!slot) slot = std::make_unique<CpuExecutor>(resolve(threads));
  return *slot;
}

Planner& Runner::planner(int threads) {
  auto& slot = planners_[resolve(threads)];
  if (!slot) slot = std::make_unique<Planner>(profile(threads));
  return *slot;
}

Output Runner::attend(const Case& problem, const RunOptions& options) {
  const AttentionSpec spec = problem.attention();
  forest_.discover(problem.tables.batch());
  planner(options.threads).plan(forest_, spec, options.plan, plan_);

  if (backend_ == Backend::kCuda && !host_attend_) {
    const DeviceCase inputs(problem);
    DeviceRun run(problem, inputs, plan_, cuda().executor, options.strided, options.want_lse);
    run.upload(cuda().stream);
    run.attend(cuda().stream);
    cuda().stream.synchronize();
    return run.download();
  }
  HostRun run(problem, plan_, options.strided, options.want_lse);
  if (host_attend_) {
    host_attend_(plan_, run.args());
  } else {
    pando::attend(plan_, run.args(), executor(options.threads));
  }
  return run.take();
}

Reference::Reference(const Case& problem, std::vector<int32_t> q_rows) : problem_(problem) {
  if (q_rows.empty()) {
    q_rows.resize(problem.tables.q_rows());
    std::iota(q_rows.begin(), q_rows.end(), 0);
  }
  const Problem inputs = problem.problem();
  const auto rows = static_cast<int64_t>(q_rows.size());
  const int64_t row_lse = problem.spec.q_heads;
  const int64_t row_out = row_lse * problem.spec.head_dim;
  const auto allocate = [&](ReferenceResult& result) {
    result.q_rows = q_rows;
    result.out.resize(rows * row_out);
    result.lse.resize(rows * row_lse);
    result.terms.resize(rows * row_lse);
  };
  ReferenceResult rounded;
  allocate(exact_);
  allocate(rounded);
  const int64_t chunk = std::max<int64_t>(1, std::min<int64_t>(64, rows / 16));
  parallel_for((rows + chunk - 1) / chunk, [&](int64_t i) {
    const int64_t begin = i * chunk;
    const std::span some = std::span(q_rows).subspan(begin, std::min(chunk, rows - begin));
    const auto place = [&](const ReferenceResult& part, ReferenceResult& whole) {
      std::copy(part.out.begin(), part.out.end(), whole.out.begin() + begin * row_out);
      std::copy(part.lse.begin(), part.lse.end(), whole.lse.begin() + begin * row_lse);
      std::copy(part.terms.begin(), part.terms.end(), whole.terms.begin() + begin * row_lse);
    };
    place(oracle(inputs, some), exact_);
    place(rounded_reference(inputs, some), rounded);
  });
  rounded_ = error_stats(rounded, exact_);
}

CheckResult Reference::check(const Output& output) const {
  const AttentionSpec spec = problem_.attention();
  const ReferenceResult got = gather_result(spec, output.view(), output.lse_or_null(), exact_);
  return {error_stats(got, exact_), rounded_, tolerance(rounded_, spec.dtype)};
}

std::vector<int32_t> sample_rows(const Case& problem, int64_t budget, uint64_t seed) {
  const Tables& tables = problem.tables;
  const AttentionSpec spec = problem.attention();
  std::vector<int32_t> rows;
  std::vector<int64_t> cost(tables.q_rows());
  for (int32_t s = 0; s < tables.sequences(); ++s) {
    const int32_t q_len = tables.q_indptr[s + 1] - tables.q_indptr[s];
    for (int32_t row = 0; row < q_len; ++row) {
      const int32_t q_row = tables.q_indptr[s] + row;
      const VisibleRange range = visible_range(spec, q_row, row, q_len, tables.kv_len[s]);
      cost[q_row] = int64_t{range.end - range.begin + 1} * spec.q_heads * spec.head_dim;
      rows.push_back(q_row);
    }
  }
  if (std::accumulate(cost.begin(), cost.end(), int64_t{0}) <= budget) return rows;
  Rng rng(seed);
  rng.shuffle(rows);
  const auto to_front = [&](int32_t row, size_t place) {
    std::iter_swap(rows.begin() + place, std::find(rows.begin(), rows.end(), row));
  };
  to_front(0, 0);
  to_front(tables.q_rows() - 1, 1);
  size_t kept = 0;
  for (int64_t spent = 0; kept < rows.size() && (kept < 2 || spent < budget); ++kept) {
    spent += cost[rows[kept]];
  }
  rows.resize(kept);
  std::sort(rows.begin(), rows.end());
  return rows;
}

}  // namespace pando::cases
