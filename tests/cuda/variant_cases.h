// Every shape, fp8, soft caps, sinks and trees of draft tokens, for a GPU and for the emulator.
#pragma once

#include <fmt/format.h>

#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cases/generate.h"
#include "core/convert.h"
#include "cuda/device_test.h"
#include "cuda/invariance.h"
#include "plan/cuda_shapes.h"

namespace pando::cases {

struct VariantCase {
  std::string name;
  Case problem;
};

/// A batch of `forest` for each dtype, head_dim, page size and layout; with a kv_dtype of those
/// that support it.
template <class Check>
void for_each_cuda_shape(const ForestShape& forest, std::optional<DType> kv_dtype, Check&& check) {
  for (const CudaShape& shape : kCudaShapes) {
    if (kv_dtype && !cuda_supports_fp8(shape.head_dim)) continue;
    for (const int32_t page_tokens : kCudaPageTokens) {
      for (const KvOrder order : {KvOrder::kHnd, KvOrder::kNhd}) {
        SCOPED_TRACE(fmt::format("{} {}, pages of {}", dtype_name(shape.dtype), shape.head_dim,
                                 page_tokens));
        Case problem = device_case(forest, page_tokens, order);
        problem.spec.dtype = shape.dtype;
        problem.spec.head_dim = shape.head_dim;
        problem.spec.kv_dtype = kv_dtype;
        fill_data(problem, {.seed = 4});
        check(problem);
      }
    }
  }
}

/// Batches of `forest` with gaps between the tokens, heads and pages of K and V, in either layout.
template <class Check>
void for_each_layout_with_gaps(const ForestShape& forest, int32_t head_dim, Check&& check) {
  for (const KvOrder order : {KvOrder::kHnd, KvOrder::kNhd}) {
    Case problem = device_case(forest, 16, order);
    problem.spec.head_dim = head_dim;
    problem.kv_gap = 8;
    fill_data(problem, {.seed = 7});
    check(problem);
  }
}

/// Every code of fp8 comes out as the number that it stands for: `attend` gives the output.
template <class Attend>
void expect_exact_fp8(Attend&& attend) {
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    // One token: out is its V.
    Case problem = device_case(prefix_shape(1, 0, 1));
    problem.spec.dtype = dtype;
    problem.spec.kv_dtype = DType::kE4M3;
    fill_data(problem, {.seed = 4});
    problem.v_scale = {1.0f};
    const KvLayout kv = problem.kv();
    for (int32_t code = 0; code < 256; ++code) {
      const int64_t at = kv.offset(problem.tables.page_ids[0], code / 128, 0) + code % 128;
      problem.v.data()[at] = static_cast<std::byte>(code);
    }
    const Output output = attend(problem);
    for (int32_t code = 0; code < 256; ++code) {
      const float want = e4m3_to_float(static_cast<uint8_t>(code));
      const float got = load_element(output.out.data(), code / 128 * 512 + code % 128, dtype);
      EXPECT_TRUE(got == want || (std::isnan(got) && std::isnan(want))) << code << ": " << got;
    }
  }
}

inline std::vector<float> some_sinks() {
  return {2, -std::numeric_limits<float>::infinity(), -9, 30, 0, 0.5f, -1, 4};
}

/// For each row any of the query tokens of its sequence.
inline std::vector<uint64_t> any_trees(const Tables& tables, uint64_t seed) {
  Rng rng(seed);
  std::vector<uint64_t> masks;
  for (int32_t s = 0; s < tables.sequences(); ++s) {
    const int32_t q_len = tables.q_indptr[s + 1] - tables.q_indptr[s];
    for (int32_t row = 0; row < q_len; ++row) masks.push_back(rng.bits() >> (64 - q_len));
  }
  return masks;
}

/// Sequences of `q_len` rows and of one behind a prefix; one that sees nothing.
inline ForestShape variant_shape(int32_t q_len) {
  ForestShape shape = prefix_shape(7, 300, 75, q_len);
  for (const int32_t tokens : {200, 65, 0}) {
    shape.add_sequence(shape.add_node(-1, tokens), tokens == 0 ? 2 : 1);
  }
  return shape;
}

/// Tokens that nobody sees hold NaN.
inline std::vector<VariantCase> variant_cases(int32_t head_dim) {
  std::vector<VariantCase> cases;
  const auto add = [&](std::string name, Case problem) {
    problem.spec.head_dim = head_dim;
    fill_data(problem, {.seed = 7});
    fill_unused(problem, Unused::kNan, true);
    cases.push_back({std::move(name), std::move(problem)});
  };
  for (const float cap : {0.5f, 2.0f, 50.0f, 1e4f}) {
    // Few rows: split tiles; many: whole ones too.
    Case problem = device_case(variant_shape(cap == 2 || cap == 50 ? 2 : 19));
    problem.spec.soft_cap = cap;
    problem.spec.scale = cap > 100 ? 300.0f : -0.4f;
    add("cap " + std::to_string(cap), std::move(problem));
  }
  for (const int32_t q_len : {1, 9}) {
    Case problem = device_case(variant_shape(q_len));
    problem.sinks = some_sinks();
    add("sinks, " + std::to_string(q_len) + " rows", std::move(problem));
  }
  for (const int32_t q_len : {5, 17, 64}) {
    for (const int32_t page_tokens : {2, 16}) {
      for (const bool any : {false, true}) {
        Case problem = device_case(variant_shape(q_len), page_tokens);
        Rng rng(q_len);
        problem.tree_mask =
            any ? any_trees(problem.tables, q_len) : random_trees(problem.tables, rng);
        add((any ? "any bits of " : "trees of ") + std::to_string(q_len), std::move(problem));
      }
    }
  }
  return cases;
}

/// company_case with all variants. fp16, in which a last bit shows more often than in bf16.
inline Case company_with_variants(const Company& company, int32_t q_len, bool trees,
                                  int32_t head_dim) {
  Case problem = company_case(company, q_len, 0, DType::kF16, head_dim);
  problem.spec.soft_cap = 3;
  problem.sinks = some_sinks();
  if (trees) problem.tree_mask = any_trees(problem.tables, 5);
  return problem;
}

}  // namespace pando::cases
