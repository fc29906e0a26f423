// The seed suite: 72 small batches on one prefix, complete attention.
#include "cases/suites.h"
#include "core/check.h"

namespace pando::cases {
namespace {

constexpr int32_t kChunkTokens = 64;
constexpr int32_t kHeadDim = 128;

Case seed_case(const std::string& name, int32_t sequences, int32_t heads, int32_t chunks,
               DataKind kind, std::optional<DType> kv_dtype) {
  const uint64_t seed = mix_seed(sequences * 1000 + heads * 10 + chunks, static_cast<int>(kind));
  Rng rng(seed);
  Case problem;
  problem.name = name;
  problem.tables =
      page_tables(ragged_shape(sequences, chunks * kChunkTokens, 1, kChunkTokens, rng), {}, rng);
  problem.spec.q_heads = heads;
  problem.spec.kv_heads = heads;
  problem.spec.head_dim = kHeadDim;
  problem.spec.kv_dtype = kv_dtype;
  fill_data(problem, {.kind = kind, .seed = seed});
  return problem;
}

}  // namespace

std::vector<SuiteCase> seed_suite(const SuiteOptions& options) {
  std::vector<SuiteCase> cases;
  for (const int32_t sequences : {8, 16, 32}) {
    for (const int32_t heads : {1, 4, 40}) {
      if (options.quick && (sequences != 8 || heads == 40)) continue;
      for (const int32_t chunks : {1, 2, 4, 8}) {
        for (const DataKind kind : {DataKind::kRandn, DataKind::kSmall}) {
          const std::string name = fmt::format("sequences{}-heads{}-chunks{}-{}", sequences, heads,
                                               chunks, data_kind_name(kind));
          cases.push_back({"seed", name, [=, kv_dtype = options.kv_dtype](Runner& runner) {
                             return verify_case(
                                 seed_case(name, sequences, heads, chunks, kind, kv_dtype),
                                 all_modes(), runner);
                           }});
        }
      }
    }
  }
  return cases;
}

}  // namespace pando::cases
