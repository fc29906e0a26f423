// The edges suite: inputs that broke attention libraries, each widened to its kind.
#include "cases/edges.h"
#include "core/check.h"

namespace pando::cases {
namespace {

void append(std::vector<SuiteCase>& to, const std::vector<SuiteCase>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

/// Row 15 is a test of the API on a machine with two GPUs (tests/cuda): a suite has one.
Outcome wrong_current_device(const Runner& runner) {
  return Outcome::skipped(runner.backend() == Backend::kCpu
                              ? "needs two GPUs: the CPU has no current device"
                              : "needs two GPUs: see DeviceGuard in tests/cuda");
}

}  // namespace

std::string Kind::name() const {
  const std::string kv = kv_dtype ? fmt::format("+{}", dtype_name(*kv_dtype)) : "";
  return fmt::format("{}{}/{}", dtype_name(dtype), kv, order == KvOrder::kHnd ? "hnd" : "nhd");
}

std::vector<Kind> edge_kinds(const SuiteOptions& options) {
  if (options.quick) return {Kind{.kv_dtype = options.kv_dtype}};
  std::vector<Kind> kinds;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (const KvOrder order : {KvOrder::kHnd, KvOrder::kNhd}) {
      kinds.push_back({dtype, order, options.kv_dtype});
    }
  }
  return kinds;
}

Case edge_case(const Kind& kind, Tables tables, int32_t q_heads, int32_t kv_heads,
               int32_t head_dim) {
  Case problem;
  problem.tables = std::move(tables);
  problem.spec.q_heads = q_heads;
  problem.spec.kv_heads = kv_heads;
  problem.spec.head_dim = head_dim;
  problem.spec.dtype = kind.dtype;
  problem.spec.kv_dtype = kind.kv_dtype;
  problem.order = kind.order;
  return problem;
}

Tables edge_tables(const ForestShape& shape, int32_t page_tokens) {
  Rng rng(page_tokens);
  return page_tables(shape, {.page_tokens = page_tokens}, rng);
}

Outcome verify_edge(Case problem, Runner& runner) {
  fill_data(problem, {.seed = 7});
  return verify_case(problem, all_modes(), runner, 1 << 24);
}

void add_kinds(std::vector<SuiteCase>& to, const std::string& name, const SuiteOptions& options,
               const std::function<Outcome(const Kind&, Runner&)>& run) {
  for (const Kind& kind : edge_kinds(options)) {
    to.push_back({"edges", name + "/" + kind.name(),
                  [kind, run](Runner& runner) { return run(kind, runner); }});
  }
}

std::vector<SuiteCase> edges_suite(const SuiteOptions& options) {
  std::vector<SuiteCase> cases = edge_values(options);
  append(cases, edge_shapes(options));
  append(cases, misuse_cases());
  cases.push_back({"edges", "15-wrong-current-device",
                   [](Runner& runner) { return wrong_current_device(runner); }});
  return cases;
}

}  // namespace pando::cases
