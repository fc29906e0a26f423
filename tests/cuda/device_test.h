// What the tests of the CUDA backend have in common.
#pragma once

#include <gtest/gtest.h>

#include <string>

#include "cases/generate.h"
#include "cases/runner.h"
#include "pando/cuda.h"

namespace pando::cases {

/// Skips where there is no GPU that the backend can use, and says why.
class DeviceTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (const std::string why = cuda_unavailable(); !why.empty()) GTEST_SKIP() << why;
  }
};

/// Of which the kernel takes the tokens of a tile all at once, and in two parts.
inline constexpr int32_t kHeadDims[] = {128, 256};

/// A case of 8/2 heads of 128 in bf16 with data, and NaN wherever nobody looks.
inline Case device_case(const ForestShape& shape, int32_t page_tokens = 16,
                        KvOrder order = KvOrder::kHnd, int32_t spare_pages = 3) {
  Rng rng(page_tokens);
  Case problem;
  problem.tables =
      page_tables(shape, {.page_tokens = page_tokens, .spare_pages = spare_pages}, rng);
  problem.spec.q_heads = 8;
  problem.spec.kv_heads = 2;
  problem.spec.head_dim = 128;
  problem.order = order;
  fill_data(problem, {.seed = 3});
  return problem;
}

/// The same at another head_dim.
inline Case at_head_dim(int32_t head_dim, Case problem) {
  problem.spec.head_dim = head_dim;
  fill_data(problem, {.seed = 3});
  return problem;
}

}  // namespace pando::cases
