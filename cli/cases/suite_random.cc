// The random suite.
#include <algorithm>

#include "cases/suites.h"
#include "core/check.h"

namespace pando::cases {
namespace {

/// Batch-invariant results must not depend on who else is in the batch.
Outcome verify_subset(const RandomCase& random, uint64_t seed, Runner& runner) {
  Outcome outcome;
  Rng rng(mix_seed(seed, 1));
  const Case& problem = random.problem;
  std::vector<int32_t> kept;
  for (int32_t s = 0; s < problem.tables.sequences(); ++s) {
    if (rng.one_in(3)) kept.push_back(s);
  }
  if (kept.empty()) return outcome;
  rng.shuffle(kept);
  const Case part = subset(problem, kept);
  RunOptions options = random.runs.back();
  const Output whole_output = runner.attend(problem, options);
  options.threads = 0;
  const Output part_output = runner.attend(part, options);
  for (size_t i = 0; i < kept.size(); ++i) {
    const int32_t rows = part.tables.q_indptr[i + 1] - part.tables.q_indptr[i];
    for (int32_t row = 0; row < rows; ++row) {
      outcome.expect(same_row_bits(problem, whole_output, problem.tables.q_indptr[kept[i]] + row,
                                   part_output, part.tables.q_indptr[i] + row),
                     fmt::format("{}: sequence {} has other bits in a batch of {}",
                                 run_name(options), kept[i], kept.size()));
    }
  }
  return outcome;
}

}  // namespace

std::vector<SuiteCase> random_suite(const SuiteOptions& options) {
  const int count = options.quick ? std::min(options.random_cases, 50) : options.random_cases;
  std::vector<SuiteCase> cases;
  for (int i = 0; i < count; ++i) {
    const uint64_t seed = options.seed + i;
    const auto kv_dtype = options.kv_dtype;
    cases.push_back({"random", fmt::format("seed{}", seed), [seed, kv_dtype](Runner& runner) {
                       const RandomCase random = random_case(seed, runner.backend(), kv_dtype);
                       Outcome outcome = verify_case(random.problem, random.runs, runner, 1 << 25);
                       outcome.absorb(verify_subset(random, seed, runner));
                       return outcome;
                     }});
  }
  return cases;
}

}  // namespace pando::cases
