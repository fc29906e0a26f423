// The oracle against answers that can be had by hand.
#include "reference/oracle.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>
#include <random>

#include "core/convert.h"
#include "pando/error.h"

namespace pando {
namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();

/// fp32 problem with one page of `page_tokens` per `kv_len` tokens, in order.
struct Small {
  std::vector<int32_t> q_indptr, kv_len, page_indptr{0}, page_ids;
  std::vector<float> q, k, v;
  Problem problem;

  Small(std::vector<int32_t> q_lens, std::vector<int32_t> kv_lens, int32_t q_heads,
        int32_t kv_heads, int32_t head_dim, int32_t page_tokens = 4)
      : q_indptr{0}, kv_len(std::move(kv_lens)) {
    for (const int32_t n : q_lens) q_indptr.push_back(q_indptr.back() + n);
    for (const int32_t n : kv_len) {
      for (int32_t p = 0; p * page_tokens < n; ++p) {
        page_ids.push_back(static_cast<int32_t>(page_ids.size()));
      }
      page_indptr.push_back(static_cast<int32_t>(page_ids.size()));
    }
    problem.batch = {q_indptr, kv_len, page_indptr, page_ids, page_tokens};
    problem.spec.q_heads = q_heads;
    problem.spec.kv_heads = kv_heads;
    problem.spec.head_dim = head_dim;
    problem.spec.dtype = DType::kF32;
    problem.kv =
        KvLayout::nhd(static_cast<int64_t>(page_ids.size()), page_tokens, kv_heads, head_dim);
    q.assign(int64_t{q_indptr.back()} * q_heads * head_dim, 0.0f);
    k.assign(problem.kv.num_pages * problem.kv.page_stride, 0.0f);
    v.assign(k.size(), 0.0f);
    problem.q.data = q.data();
    problem.k = k.data();
    problem.v = v.data();
  }
};

TEST(Oracle, zero_queries_give_the_mean_and_the_log_of_the_length) {
  for (const int32_t tokens : {1, 3, 4, 5, 16, 64}) {
    Small s({1}, {tokens}, 8, 8, 8);
    std::iota(s.v.begin(), s.v.end(), 0.0f);
    const ReferenceResult r = oracle(s.problem);
    for (int32_t h = 0; h < 8; ++h) {
      EXPECT_NEAR(r.lse[h], std::log(tokens), 1e-12);
      for (int32_t d = 0; d < 8; ++d) {
        EXPECT_NEAR(r.out[h * 8 + d], 64.0 * (tokens - 1) / 2 + h * 8 + d, 1e-9);
      }
    }
  }
}

TEST(Oracle, large_negative_logits_keep_their_lse) {
  Small s({1}, {2}, 1, 1, 128);
  std::ranges::fill(s.q, 64.0f);
  std::ranges::fill(s.k, -64.0f);
  std::ranges::fill(s.v, 1.0f);
  const ReferenceResult r = oracle(s.problem);
  EXPECT_NEAR(r.lse[0], -524288.0 * s.problem.spec.scale_or_default() + std::numbers::ln2, 1e-9);
  EXPECT_NEAR(r.lse[0], -46340.257, 5e-3);
  for (const double o : r.out) EXPECT_EQ(o, 1.0);
}

TEST(Oracle, causal_rows_before_the_first_token_see_nothing) {
  Small s({34}, {1}, 32, 8, 8);
  std::ranges::fill(s.q, 1.0f);
  std::ranges::fill(s.k, 0.5f);
  std::iota(s.v.begin(), s.v.end(), 1.0f);
  const ReferenceResult r = oracle(s.problem);
  for (int32_t row = 0; row < 33; ++row) {
    for (int32_t h = 0; h < 32; ++h) {
      EXPECT_EQ(r.lse[row * 32 + h], -kInf);
      for (int32_t d = 0; d < 8; ++d) EXPECT_EQ(r.out[(row * 32 + h) * 8 + d], 0.0);
    }
  }
  for (int32_t h = 0; h < 32; ++h) {
    EXPECT_NEAR(r.lse[33 * 32 + h], 4.0 * s.problem.spec.scale_or_default(), 1e-12);
    for (int32_t d = 0; d < 8; ++d) EXPECT_EQ(r.out[(33 * 32 + h) * 8 + d], h / 4 * 8 + d + 1.0);
  }
}

TEST(Oracle, softmax_of_two_known_scores) {
  Small s({1}, {2}, 1, 1, 8);
  s.q[0] = 1.0f;
  s.k[0] = 0.0f;
  s.k[8] = static_cast<float>(std::log(3.0));
  s.v[0] = 1.0f;
  s.v[8] = 5.0f;
  s.problem.spec.scale = 1.0f;
  const ReferenceResult r = oracle(s.problem);
  EXPECT_NEAR(r.out[0], 0.25 * 1 + 0.75 * 5, 1e-6);
  EXPECT_NEAR(r.lse[0], std::log(4.0), 1e-6);
}

TEST(Oracle, a_soft_cap_bends_scaled_scores) {
  Small s({1}, {2}, 1, 1, 8);
  s.q[0] = 3.0f;
  s.k[0] = 0.0f;
  s.k[8] = 2.0f;
  s.v[8] = 1.0f;
  s.problem.spec.scale = 0.5f;
  s.problem.spec.soft_cap = 2.0f;
  const double capped = 2 * std::tanh(3.0 / 2);
  const ReferenceResult r = oracle(s.problem);
  EXPECT_NEAR(r.lse[0], std::log(1 + std::exp(capped)), 1e-12);
  EXPECT_NEAR(r.out[0], std::exp(capped) / (1 + std::exp(capped)), 1e-12);
}

TEST(Oracle, a_sink_takes_part_in_the_sum_of_its_head_only) {
  Small s({1}, {1}, 2, 1, 8);
  std::ranges::fill(s.v, 4.0f);
  const std::vector<float> sinks{static_cast<float>(std::log(3.0)), -INFINITY};
  s.problem.sinks = sinks.data();
  const ReferenceResult r = oracle(s.problem);
  EXPECT_NEAR(r.out[0], 1.0, 1e-6);
  EXPECT_NEAR(r.lse[0], std::log(4.0), 1e-6);
  EXPECT_EQ(r.out[8], 4.0);
  EXPECT_EQ(r.lse[1], 0.0);
}

TEST(Oracle, a_row_with_nothing_but_a_sink_is_zero) {
  Small s({2}, {1}, 1, 1, 8);
  std::ranges::fill(s.v, 4.0f);
  const float sink = -1.5f;
  s.problem.sinks = &sink;
  const ReferenceResult r = oracle(s.problem);
  EXPECT_EQ(r.lse[0], -1.5);
  for (int32_t d = 0; d < 8; ++d) EXPECT_EQ(r.out[d], 0.0);
  EXPECT_NEAR(r.lse[1], std::log(1 + std::exp(-1.5)), 1e-12);
}

TEST(Oracle, a_tree_mask_leaves_out_other_branches) {
  Small s({3}, {4}, 1, 1, 8);
  for (int32_t t = 0; t < 4; ++t) s.v[t * 8] = static_cast<float>(1 << t);
  const std::vector<uint64_t> masks{0b001, 0b011, 0b101};
  s.problem.spec.tree_mask = masks;
  const ReferenceResult r = oracle(s.problem);
  EXPECT_NEAR(r.out[0], (1 + 2) / 2.0, 1e-12);
  EXPECT_NEAR(r.out[8], (1 + 2 + 4) / 3.0, 1e-12);
  EXPECT_NEAR(r.out[16], (1 + 2 + 8) / 3.0, 1e-12);
}

TEST(Oracle, sequences_without_kv_or_rows_are_empty) {
  Small s({2, 0, 1, 0}, {0, 4, 3, 0}, 2, 1, 8);
  std::ranges::fill(s.v, 7.0f);
  const ReferenceResult r = oracle(s.problem);
  ASSERT_EQ(r.q_rows.size(), 3u);
  for (int32_t i = 0; i < 4; ++i) EXPECT_EQ(r.lse[i], -kInf);
  EXPECT_EQ(r.out[0], 0.0);
  EXPECT_NEAR(r.lse[4], std::log(3.0), 1e-12);
  EXPECT_EQ(r.out[4 * 8], 7.0);
}

TEST(Oracle, nothing_past_the_end_is_read) {
  Small s({1}, {13}, 2, 1, 8, 4);
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (auto* data : {&s.q, &s.k, &s.v}) {
    for (float& x : *data) x = normal(random);
  }
  const ReferenceResult clean = oracle(s.problem);
  for (const float poison :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity()}) {
    std::fill(s.k.begin() + 13 * 8, s.k.end(), poison);
    std::fill(s.v.begin() + 13 * 8, s.v.end(), poison);
    EXPECT_EQ(oracle(s.problem).out, clean.out);
    EXPECT_EQ(oracle(s.problem).lse, clean.lse);
  }
}

TEST(Oracle, scores_of_minus_infinity_alone_are_an_empty_row) {
  Small s({1}, {2}, 1, 1, 8);
  s.q[0] = 1.0f;
  s.k[0] = s.k[8] = -std::numeric_limits<float>::infinity();
  s.v[0] = 3.0f;
  const ReferenceResult r = oracle(s.problem);
  EXPECT_EQ(r.lse[0], -kInf);
  EXPECT_EQ(r.out[0], 0.0);
}

TEST(Oracle, a_visible_nan_shows) {
  Small s({1}, {3}, 1, 1, 8);
  s.q[0] = 1.0f;
  s.k[8] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(oracle(s.problem).out[0]));
}

TEST(Oracle, selected_rows_equal_those_of_all) {
  Small s({3, 1}, {9, 6}, 4, 2, 16);
  std::mt19937 random(2);
  std::normal_distribution<float> normal;
  for (auto* data : {&s.q, &s.k, &s.v}) {
    for (float& x : *data) x = normal(random);
  }
  const ReferenceResult all = oracle(s.problem);
  const int32_t rows[] = {3, 1};
  const ReferenceResult some = oracle(s.problem, rows);
  for (int32_t i = 0; i < 2; ++i) {
    for (int32_t x = 0; x < 64; ++x) EXPECT_EQ(some.out[i * 64 + x], all.out[rows[i] * 64 + x]);
  }
}

/// fp8 KV is nothing but other numbers for K and V: the products with their scales.
TEST(Oracle, fp8_is_what_its_elements_stand_for) {
  for (const bool by_head : {false, true}) {
    Small s({3}, {21}, 4, 2, 16);
    std::mt19937 random(8);
    std::normal_distribution<float> normal;
    for (float& x : s.q) x = normal(random);
    std::vector<uint8_t> k(s.k.size()), v(s.v.size());
    std::vector<float> k_scale{0.25f, 0.5f}, v_scale{2.0f, 0.125f};  // exact products
    if (!by_head) k_scale.resize(1), v_scale.resize(1);
    for (size_t i = 0; i < k.size(); ++i) {
      const size_t head = by_head ? i / 16 % 2 : 0;
      k[i] = float_to_e4m3(3 * normal(random));
      v[i] = float_to_e4m3(100 * normal(random));
      s.k[i] = k_scale[head] * e4m3_to_float(k[i]);
      s.v[i] = v_scale[head] * e4m3_to_float(v[i]);
    }
    const ReferenceResult want = oracle(s.problem);
    s.problem.spec.kv_dtype = DType::kE4M3;
    s.problem.k = k.data();
    s.problem.v = v.data();
    s.problem.k_scale = k_scale;
    s.problem.v_scale = v_scale;
    const ReferenceResult got = oracle(s.problem);
    for (size_t i = 0; i < want.out.size(); ++i) EXPECT_NEAR(got.out[i], want.out[i], 1e-12);
    for (size_t i = 0; i < want.lse.size(); ++i) EXPECT_NEAR(got.lse[i], want.lse[i], 1e-12);
    const ErrorStats rounded = error_stats(rounded_reference(s.problem), want);
    EXPECT_GT(rounded.max_err_out, 0);
    EXPECT_LT(rounded.max_err_out, 1e-5 * rounded.max_abs_out);
  }
}

TEST(CheckResult, accepts_the_oracle_and_refuses_what_is_off) {
  Small s({2}, {40}, 4, 2, 64);
  s.problem.spec.dtype = DType::kF32;
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (auto* data : {&s.q, &s.k, &s.v}) {
    for (float& x : *data) x = normal(random);
  }
  const ReferenceResult exact = oracle(s.problem);
  std::vector<float> out(exact.out.begin(), exact.out.end());
  std::vector<float> lse(exact.lse.begin(), exact.lse.end());
  EXPECT_TRUE(check_result(s.problem, {out.data()}, lse.data()).passed());
  EXPECT_TRUE(check_result(s.problem, {out.data()}, nullptr).passed());
  const auto refused = [&](std::vector<float>& where, float wrong) {
    std::swap(where[5], wrong);
    EXPECT_FALSE(check_result(s.problem, {out.data()}, lse.data()).passed());
    std::swap(where[5], wrong);
  };
  refused(out, out[5] + 1e-5f);
  refused(lse, lse[5] + 1e-4f);
  refused(out, std::numeric_limits<float>::quiet_NaN());
  refused(lse, -std::numeric_limits<float>::infinity());
}

TEST(CheckResult, allows_no_more_than_a_few_roundings_in_bf16) {
  Small s({1}, {300}, 2, 1, 64);
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  std::vector<uint16_t> q(s.q.size()), k(s.k.size()), v(s.v.size());
  for (auto* data : {&q, &k, &v}) {
    for (uint16_t& x : *data) x = float_to_bf16(normal(random));
  }
  s.problem.spec.dtype = DType::kBF16;
  s.problem.q.data = q.data();
  s.problem.k = k.data();
  s.problem.v = v.data();
  const ReferenceResult exact = oracle(s.problem);
  std::vector<uint16_t> out;
  for (const double o : exact.out) out.push_back(float_to_bf16(static_cast<float>(o)));
  const CheckResult check = check_result(s.problem, {out.data()}, nullptr);
  EXPECT_TRUE(check.passed());
  EXPECT_LT(check.allowed.out, 0.02 * check.got.max_abs_out);
}

TEST(CheckResult, an_infinite_tolerance_passes_nothing) {
  CheckResult check;
  EXPECT_TRUE(check.passed());
  check.allowed.out = std::numeric_limits<double>::infinity();
  EXPECT_FALSE(check.passed());
}

/// Scores of 1e4: one rounding of a score moves its weight by 1e4 roundings of 1.
TEST(CheckResult, allows_for_the_rounding_of_large_scores) {
  Small s({1}, {2}, 1, 1, 8);
  s.q[0] = 100.0f;
  s.k[0] = 100.0f;
  s.k[8] = 100.0f;
  s.v[0] = s.v[8] = 1.0f;
  s.problem.spec.scale = 1.0f;
  std::vector<float> out(8, 0.0f);
  const double one_rounding = 1e4 * std::numeric_limits<float>::epsilon();
  out[0] = static_cast<float>(1.0 + 0.9 * one_rounding);
  EXPECT_TRUE(check_result(s.problem, {out.data()}, nullptr).passed());
  out[0] = static_cast<float>(1.0 + 3 * one_rounding);
  EXPECT_FALSE(check_result(s.problem, {out.data()}, nullptr).passed());
}

/// Two terms of 1000 that cancel to a score of 0: what they may move it by, with and without a cap
/// whose slope there is 1, and at a score of 2 caps.
TEST(ErrorStats, has_the_terms_of_scores) {
  Small s({1}, {1}, 1, 1, 8);
  s.q[0] = s.q[1] = 100;
  s.k[0] = 10;
  s.k[1] = -10;
  s.problem.spec.scale = 1.0f;
  const auto terms = [&] {
    const ReferenceResult exact = oracle(s.problem);
    return error_stats(exact, exact).max_terms;
  };
  EXPECT_DOUBLE_EQ(terms(), 2000);
  s.problem.spec.soft_cap = 5;
  EXPECT_DOUBLE_EQ(terms(), 2000);
  s.k[0] = 10.125f;
  s.k[1] = -10.0f;
  const double bent = std::tanh(12.5 / 5);
  EXPECT_NEAR(terms(), 2012.5 * (1 - bent * bent), 1e-9);
}

TEST(ErrorStats, refuses_other_rows) {
  ReferenceResult a{{0}, {1.0}, {0.0}};
  ReferenceResult b{{1}, {1.0}, {0.0}};
  EXPECT_THROW(error_stats(a, b), Error);
}

}  // namespace
}  // namespace pando
