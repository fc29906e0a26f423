// Random cases: forests of any shape, attended to in any way.
#include <algorithm>
#include <limits>

#include "cases/suites.h"
#include "core/check.h"
#include "plan/cuda_shapes.h"
#include "plan/variants.h"

namespace pando::cases {
namespace {

/// Sizes around the blocks that implementations work in, and anything between.
int32_t random_tokens(Rng& rng, int32_t largest) {
  static const std::vector<int32_t> kEdges = {1,  2,   15,  16,  17,  63,  64,
                                              65, 127, 128, 129, 255, 256, 257};
  const auto tokens =
      rng.one_in(2) ? rng.pick(kEdges) : static_cast<int32_t>(rng.between(1, largest));
  return std::min(tokens, largest);
}

ForestShape random_shape(Rng& rng) {
  ForestShape shape;
  const int64_t nodes = rng.between(0, 12);
  const auto largest = static_cast<int32_t>(rng.one_in(4) ? 600 : 150);
  for (int32_t i = 0; i < nodes; ++i) {
    const auto parent =
        static_cast<int32_t>(rng.between(rng.one_in(6) ? -1 : std::min(i - 1, 0), i - 1));
    shape.add_node(parent, rng.one_in(20) ? 0 : random_tokens(rng, largest));
  }
  const int64_t sequences = rng.between(0, rng.one_in(5) ? 40 : 10);
  const int64_t most_rows = rng.one_in(3) ? 40 : 2;
  for (int64_t s = 0; s < sequences; ++s) {
    auto node = static_cast<int32_t>(rng.between(-1, nodes - 1));
    if (rng.one_in(3)) node = shape.add_node(node, random_tokens(rng, 150));
    const auto q_len = static_cast<int32_t>(rng.one_in(12) ? 0 : rng.between(1, most_rows));
    shape.add_sequence(node, q_len);
  }
  return shape;
}

AttentionSpec random_spec(Rng& rng, Backend backend) {
  static const std::vector<DType> kDtypes = {DType::kF32, DType::kBF16, DType::kF16};
  static const std::vector<int32_t> kGroups = {1, 1, 2, 3, 4, 5, 7, 8, 16, 32};
  static const std::vector<int32_t> kHeadDims = {8,  16, 24,  40,  64,  64, 72,
                                                 80, 96, 128, 128, 192, 256};
  AttentionSpec spec;
  spec.kv_heads = static_cast<int32_t>(rng.between(1, 4));
  spec.q_heads = spec.kv_heads * rng.pick(kGroups);
  spec.head_dim = rng.pick(kHeadDims);
  spec.dtype = rng.pick(kDtypes);
  if (backend == Backend::kCuda) {
    const CudaShape shape = kCudaShapes[rng.below(kCudaShapes.size())];
    spec.head_dim = shape.head_dim;
    spec.dtype = shape.dtype;
  }
  if (rng.one_in(4)) spec.scale = static_cast<float>(rng.between(1, 64)) / 64;
  spec.causal = !rng.one_in(3);
  if (rng.one_in(4)) spec.window = static_cast<int32_t>(rng.between(1, 200));
  return spec;
}

/// Ranges of every sort: inside, past both ends, empty and reversed.
std::vector<VisibleRange> random_visible(const Tables& tables, Rng& rng) {
  std::vector<VisibleRange> visible;
  for (int32_t s = 0; s < tables.sequences(); ++s) {
    const int32_t kv_len = tables.kv_len[s];
    for (int32_t row = tables.q_indptr[s]; row < tables.q_indptr[s + 1]; ++row) {
      const auto begin = static_cast<int32_t>(rng.between(-5, kv_len + 2));
      visible.push_back({begin, static_cast<int32_t>(rng.between(begin - 2, kv_len + 5))});
    }
  }
  return visible;
}

/// Any bits for query tokens that are there, or a forest.
std::vector<uint64_t> random_tree_mask(const Tables& tables, Rng& rng) {
  if (rng.one_in(2)) return random_trees(tables, rng);
  std::vector<uint64_t> masks;
  for (int32_t s = 0; s < tables.sequences(); ++s) {
    const int32_t q_len = tables.q_indptr[s + 1] - tables.q_indptr[s];
    for (int32_t row = 0; row < q_len; ++row) masks.push_back(rng.bits() >> (64 - q_len));
  }
  return masks;
}

/// Variants that the backend supports, any of them together.
void draw_variants(Case& problem, Backend backend, std::optional<DType> kv_dtype, Rng& rng) {
  static const std::vector<float> kCaps = {0.5f, 5, 30, 50, 1e3f};
  for (const VariantSupport& support : kVariants) {
    const bool drawn = rng.one_in(4);
    if (!drawn || !variant_is_supported(support, backend)) continue;
    if (support.variant == Variant::kSoftCap) problem.spec.soft_cap = rng.pick(kCaps);
    if (support.variant == Variant::kSinks) {
      problem.sinks = random_sinks(problem.spec.q_heads, rng);
      if (rng.one_in(3)) problem.sinks[0] = -std::numeric_limits<float>::infinity();
    }
    if (support.variant == Variant::kFp8Kv && problem.spec.dtype != DType::kF32 &&
        (backend == Backend::kCpu || cuda_supports_fp8(problem.spec.head_dim))) {
      problem.spec.kv_dtype = DType::kE4M3;
    }
    if (support.variant == Variant::kTreeMask && problem.visible.empty()) {
      problem.spec.window = 0;
      problem.tree_mask = random_tree_mask(problem.tables, rng);
    }
  }
  if (kv_dtype) problem.spec.kv_dtype = kv_dtype;
}

RunOptions random_run(Rng& rng, Sharing sharing) {
  static const std::vector<int32_t> kCuts = {256, 512, 1024};
  RunOptions run;
  run.plan.sharing = sharing;
  run.threads = static_cast<int>(rng.between(1, 3));
  run.strided = rng.one_in(3);
  run.want_lse = !rng.one_in(6);
  run.plan.cut_tokens = rng.pick(kCuts);
  return run;
}

}  // namespace

RandomCase random_case(uint64_t seed, Backend backend, std::optional<DType> kv_dtype) {
  Rng rng(mix_seed(seed, 0));
  RandomCase result;
  Case& problem = result.problem;
  problem.name = fmt::format("random-{}", seed);
  const int32_t page_tokens = backend == Backend::kCpu
                                  ? 1 << rng.below(9)
                                  : kCudaPageTokens[rng.below(kCudaPageTokens.size())];
  const TableOptions tables{.page_tokens = page_tokens,
                            .spare_pages = static_cast<int32_t>(rng.below(4)),
                            .spare_entries = static_cast<int32_t>(rng.one_in(3) ? rng.below(4) : 0),
                            .shuffle = !rng.one_in(5)};
  problem.tables = page_tables(random_shape(rng), tables, rng);
  problem.spec = random_spec(rng, backend);
  problem.order = rng.one_in(2) ? KvOrder::kHnd : KvOrder::kNhd;
  if (rng.one_in(4)) {
    problem.visible = random_visible(problem.tables, rng);
    problem.spec.window = 0;  // ranges replace the window
  }
  Rng variants(mix_seed(seed, 2));
  draw_variants(problem, backend, kv_dtype, variants);
  if (rng.one_in(3)) {
    problem.q_head_stride = problem.spec.head_dim + 8 * rng.below(3);
    problem.q_row_stride = problem.spec.q_heads * problem.q_head_stride + 8 * rng.below(3);
  }
  static const std::vector<DataKind> kKinds = {DataKind::kRandn, DataKind::kSmall,
                                               DataKind::kAdversarial};
  fill_data(problem, {.kind = rng.pick(kKinds), .seed = seed});
  if (!problem.k_scale.empty() && variants.one_in(3)) {  // one scale for all heads
    problem.k_scale.erase(problem.k_scale.begin() + 1, problem.k_scale.end());
    problem.v_scale.erase(problem.v_scale.begin() + 1, problem.v_scale.end());
  }
  if (rng.one_in(2)) fill_unused(problem, Unused::kMixed, true);

  for (const Sharing sharing : {Sharing::kAuto, Sharing::kNone, Sharing::kAll}) {
    result.runs.push_back(random_run(rng, sharing));
  }
  // Batch-invariant runs must agree in their bits, so only sharing and threads may differ.
  RunOptions invariant = random_run(rng, Sharing::kAuto);
  invariant.plan.batch_invariant = true;
  for (const Sharing sharing : {Sharing::kNone, Sharing::kAll, Sharing::kAuto}) {
    invariant.plan.sharing = sharing;
    invariant.threads = invariant.threads % 3 + 1;
    result.runs.push_back(invariant);
  }
  return result;
}

}  // namespace pando::cases
