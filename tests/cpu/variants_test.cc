// Variants of attention in every kernel on every vector target: soft cap, sinks, trees.
#include <cmath>
#include <utility>
#include <vector>

#include "cpu/kernel_targets.h"

namespace pando::testing {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

class Variants : public Kernels {};

/// Sequences that share pages, among them chunks of rows that cross tiles.
const std::vector<Sequence> kSequences{{1, 300, 8}, {5, 259, 8}, {40, 150, 8}, {64, 99}, {3, 1}};

std::vector<float> sinks_of(int32_t q_heads) {
  std::vector<float> sinks(q_heads);
  for (int32_t h = 0; h < q_heads; ++h) sinks[h] = 3.0f * static_cast<float>(h % 5) - 4;
  sinks[0] = -kInf;
  return sinks;
}

TEST_P(Variants, tanh_is_accurate_and_exact_at_the_ends) {
  std::vector<float> in, out;
  for (int i = 0; i <= 200'000; ++i) {
    for (const float step : {1e-7f, 1e-5f, 1e-4f}) in.push_back(step * static_cast<float>(i));
  }
  const size_t count = in.size();
  in.insert(in.end(), {0.0f, 20.0f, kInf, -kInf, -20.0f, 1e-40f, kNan});
  in.resize(in.size() + 1, -0.3f);
  out.resize(in.size());
  tanh_values(in.data(), out.data(), static_cast<int64_t>(in.size()));
  double worst = 0;
  for (size_t i = 0; i < count; ++i) {
    if (in[i] == 0) continue;
    const double want = std::tanh(static_cast<double>(in[i]));
    worst = std::max(worst, std::abs(out[i] - want) / want);
  }
  EXPECT_LE(worst, 4e-7);
  EXPECT_EQ(std::vector<float>(out.begin() + count, out.begin() + count + 5),
            (std::vector<float>{0.0f, 1.0f, 1.0f, -1.0f, -1.0f}));
  EXPECT_TRUE(std::isnan(out[count + 6]));
  EXPECT_NEAR(out[count + 7], std::tanh(-0.3), 1e-7);
}

TEST(SoftCap, that_no_score_comes_near_is_none) {
  ScoreScale s = ScoreScale::of(0.125f, 1e8f);
  EXPECT_TRUE(s.capped());
  EXPECT_EQ(s.scale_ln, 1e8f);
  // The quotients are no normal numbers.
  for (const auto& [scale, cap] : {std::pair{0.125f, 3e37f}, {-1e-31f, 1e8f}, {1e-38f, 1e38f}}) {
    s = ScoreScale::of(scale, cap);
    EXPECT_FALSE(s.capped()) << scale << " " << cap;
    EXPECT_EQ(s.scale_ln, std::abs(scale));
    EXPECT_EQ(s.q_factor, scale < 0 ? -1.0f : 1.0f);
  }
}

TEST_P(Variants, soft_caps_match_the_oracle) {
  for (const DType dtype : dtypes()) {
    for (const float cap : {0.5f, 50.0f, 1e4f}) {
      for (const float scale : {0.125f, -0.3f, 0.0f}) {
        AttentionSpec spec = spec_of(dtype, 4, 2, 72);
        spec.soft_cap = cap;
        spec.scale = scale;
        expect_correct(AttendCase(spec, 16, kSequences));
      }
    }
  }
}

TEST_P(Variants, soft_caps_match_the_oracle_on_large_scores_and_with_windows) {
  for (const DType dtype : dtypes()) {
    AttentionSpec spec = spec_of(dtype, 2, 1, 128);
    spec.soft_cap = 30;
    spec.window = 50;
    AttendCase c(spec, 16, kSequences);
    for (int64_t i = 0; i < 2 * 128; ++i) store_element(c.q.data(), i, dtype, 64.0f);
    c.fill_token(c.k, 0, 290, -64.0f);
    c.fill_token(c.k, 0, 299, 64.0f);
    expect_correct(c);
  }
}

TEST_P(Variants, sinks_match_the_oracle_and_count_once) {
  for (const DType dtype : dtypes()) {
    AttendCase c(spec_of(dtype, 6, 2, 64), 16, kSequences);
    c.sinks = sinks_of(6);
    for (const Sharing sharing : {Sharing::kNone, Sharing::kAll}) {
      for (const bool invariant : {false, true}) {
        PlanOptions options;
        options.sharing = sharing;
        options.batch_invariant = invariant;
        options.cut_tokens = 64;  // several sources a row
        expect_correct(c, options, 2);
      }
    }
  }
}

TEST_P(Variants, sinks_of_minus_infinity_change_no_bit) {
  ThreadPool pool(1);
  for (const DType dtype : dtypes()) {
    AttendCase c(spec_of(dtype, 4, 2, 64), 16, kSequences);
    PlanOptions options;
    options.sharing = Sharing::kAll;
    const Plan plan = c.plan(profile(), options);
    const Output without = c.run(plan, kernels(dtype), pool);
    c.sinks.assign(4, -kInf);
    EXPECT_EQ(c.run(plan, kernels(dtype), pool), without);
  }
}

TEST_P(Variants, rows_that_see_nothing_have_the_sink_as_lse) {
  ThreadPool pool(1);
  for (const DType dtype : dtypes()) {
    AttendCase c(spec_of(dtype, 4, 2, 64), 16, {{34, 1}, {3, 0}});
    c.sinks = sinks_of(4);
    const Output output = c.run(c.plan(profile()), kernels(dtype), pool);
    EXPECT_TRUE(c.check(output).passed());
    for (int64_t i = 0; i < 33 * 4; ++i) {
      EXPECT_EQ(output.lse[i], c.sinks[i % 4]);
      EXPECT_EQ(load_element(output.out.data(), i * 64, dtype), 0.0f);
    }
  }
}

TEST_P(Variants, sinks_far_above_the_scores_leave_nothing) {
  for (const DType dtype : dtypes()) {
    AttendCase c(spec_of(dtype, 2, 1, 64), 16, kSequences);
    c.sinks = {90.0f, 1e30f};
    expect_correct(c);
  }
}

TEST_P(Variants, trees_match_the_oracle) {
  for (const DType dtype : dtypes()) {
    for (const int32_t page : {1, 16}) {
      for (uint32_t seed = 0; seed < 2; ++seed) {
        AttendCase c(spec_of(dtype, 6, 2, 72), page, kSequences);
        c.draw_trees(seed);
        for (const Sharing sharing : {Sharing::kNone, Sharing::kAll}) {
          PlanOptions options;
          options.sharing = sharing;
          expect_correct(c, options, 2);
        }
      }
    }
  }
}

TEST_P(Variants, masks_of_any_bits_match_the_oracle) {
  std::mt19937_64 random(3);
  for (const DType dtype : dtypes()) {
    AttendCase c(spec_of(dtype, 2, 1, 64), 16, {{64, 64}, {64, 40}, {33, 90}, {1, 5}, {64, 200}});
    for (size_t s = 0; s < c.kv_len.size(); ++s) {
      const int32_t q_len = c.q_indptr[s + 1] - c.q_indptr[s];
      for (int32_t r = 0; r < q_len; ++r) c.tree_mask.push_back(random() >> (64 - q_len));
    }
    expect_correct(c);
  }
}

TEST_P(Variants, a_chain_has_the_bits_of_a_causal_mask) {
  ThreadPool pool(1);
  for (const DType dtype : dtypes()) {
    AttendCase c(spec_of(dtype, 4, 2, 64), 16, kSequences);
    const Plan causal = c.plan(profile());
    const Output expected = c.run(causal, kernels(dtype), pool);
    for (size_t s = 0; s < c.kv_len.size(); ++s) {
      for (int32_t r = c.q_indptr[s]; r < c.q_indptr[s + 1]; ++r) {
        c.tree_mask.push_back(~uint64_t{0} >> (63 - (r - c.q_indptr[s])));
      }
    }
    const Plan chain = c.plan(profile());
    EXPECT_TRUE(std::ranges::equal(chain.bytes(), causal.bytes()));
    EXPECT_EQ(c.run(chain, kernels(dtype), pool), expected);
  }
}

TEST_P(Variants, tokens_of_other_branches_change_no_bit) {
  ThreadPool pool(1);
  for (const DType dtype : dtypes()) {
    AttentionSpec spec = spec_of(dtype, 4, 2, 72);
    spec.soft_cap = 20;
    AttendCase c(spec, 16, {{20, 77}, {64, 140}});
    c.draw_trees(5);
    const Plan plan = c.plan(profile());
    const Output clean = c.run(plan, kernels(dtype), pool);
    const int64_t row_bytes = int64_t{spec.q_heads} * spec.head_dim * dtype_bytes(dtype);
    for (const int32_t token : {60, 63, 64, 70}) {
      for (const float value : {kNan, kInf, -kInf}) {
        AttendCase dirty = c;
        dirty.fill_token(dirty.k, 0, token, value);
        dirty.fill_token(dirty.v, 0, token, value);
        const Output got = dirty.run(plan, kernels(dtype), pool);
        for (int32_t row = 0; row < c.q_rows; ++row) {
          if (row < 20 && c.sees(0, row, token)) continue;
          EXPECT_EQ(std::memcmp(clean.out.data() + row * row_bytes,
                                got.out.data() + row * row_bytes, row_bytes),
                    0)
              << GetParam().name << " row " << row << " token " << token;
          EXPECT_TRUE(same_bits(std::span(clean.lse).subspan(row * 4, 4),
                                std::span(got.lse).subspan(row * 4, 4)));
        }
      }
    }
  }
}

TEST_P(Variants, rows_keep_their_bits_among_other_rows_when_batch_invariant) {
  ThreadPool pool(2);
  for (const DType dtype : dtypes()) {
    PlanOptions options;
    options.batch_invariant = true;
    options.cut_tokens = 64;
    AttentionSpec spec = spec_of(dtype, 4, 2, 80);
    spec.soft_cap = 4;
    const std::vector<Sequence> all{{1, 200, 8}, {5, 333, 8}, {1, 128, 8}, {9, 131, 8}, {40, 90}};
    AttendCase together(spec, 16, all);
    together.sinks = sinks_of(4);
    together.draw_trees(9);
    const Output whole = together.run(together.plan(profile(2), options), kernels(dtype), pool);
    for (int32_t s = 0; s < static_cast<int32_t>(all.size()); ++s) {
      SCOPED_TRACE(fmt::format("{} {} sequence {}", GetParam().name, dtype_name(dtype), s));
      const AttendCase alone = together.alone(s);
      const Output one = alone.run(alone.plan(profile(1), options), kernels(dtype), pool);
      together.expect_same_rows(s, one, whole);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Variants, ::testing::ValuesIn(targets()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace pando::testing
