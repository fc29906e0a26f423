// Every kernel on every vector target that this machine can run, against the fp64 oracle.
#include "cpu/kernels.h"

#include <bit>
#include <cmath>
#include <vector>

#include "cpu/kernel_targets.h"

namespace pando::testing {
namespace {

TEST_P(Kernels, exp2_is_accurate_and_exact_at_the_ends) {
  std::vector<float> in, out;
  for (int i = 0; i <= 1'260'000; ++i) in.push_back(-1e-4f * static_cast<float>(i));
  const auto count = static_cast<int64_t>(in.size());
  in.insert(in.end(), {-126.5f, -1000.0f, -1e30f, -std::numeric_limits<float>::infinity(), 0.0f});
  out.resize(in.size());
  exp2_values(in.data(), out.data(), static_cast<int64_t>(in.size()));
  double worst = 0;
  for (int64_t i = 0; i < count; ++i) {
    const double want = std::exp2(static_cast<double>(in[i]));
    if (in[i] >= -126.0f) worst = std::max(worst, std::abs(out[i] - want) / want);
  }
  EXPECT_LE(worst, 2e-7);
  for (int64_t i = count; i < count + 4; ++i) EXPECT_EQ(out[i], 0.0f);
  EXPECT_EQ(out.back(), 1.0f);
}

TEST_P(Kernels, match_the_oracle_at_every_head_dim) {
  for (const DType dtype : dtypes()) {
    for (int32_t head_dim = 8; head_dim <= 256; head_dim += head_dim < 80 ? 8 : 16) {
      const AttentionSpec spec = spec_of(dtype, 4, 2, head_dim);
      expect_correct(AttendCase(spec, 16, {{1, 70, 2}, {3, 45, 2}, {1, 33, 2}}));
    }
  }
}

TEST_P(Kernels, match_the_oracle_at_every_number_of_rows) {
  for (const DType dtype : dtypes()) {
    for (const int32_t rows :
         {1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 47, 48, 49, 63, 65, 96, 127, 128, 129, 200}) {
      expect_correct(AttendCase(spec_of(dtype, 1, 1, 64), 16, {{rows, rows + 70}}));
    }
  }
}

TEST_P(Kernels, match_the_oracle_at_every_length) {
  for (const DType dtype : dtypes()) {
    for (const int32_t tokens :
         {1, 2, 15, 16, 17, 31, 33, 63, 64, 65, 127, 128, 129, 191, 255, 256, 257, 511, 513, 700}) {
      expect_correct(AttendCase(spec_of(dtype, 4, 1, 128), 16, {{1, tokens}, {2, tokens + 1}}));
    }
  }
}

TEST_P(Kernels, match_the_oracle_at_every_page_size_and_layout) {
  for (const DType dtype : dtypes()) {
    for (const int32_t page : {1, 2, 4, 8, 16, 32, 64, 128, 256}) {
      for (const Layout layout : {Layout::kHnd, Layout::kNhd, Layout::kPadded}) {
        const int32_t shared = std::max(1, 64 / page);
        expect_correct(AttendCase(spec_of(dtype, 6, 2, 64), page,
                                  {{1, shared * page + 3, shared},
                                   {2, shared * page + 37, shared},
                                   {5, shared * page, shared}},
                                  layout));
      }
    }
  }
}

TEST_P(Kernels, match_the_oracle_at_every_head_ratio) {
  for (const DType dtype : dtypes()) {
    for (const auto& [q_heads, kv_heads] : std::vector<std::pair<int, int>>{
             {1, 1}, {24, 4}, {64, 4}, {32, 2}, {14, 2}, {5, 1}, {71, 1}, {128, 1}, {8, 8}}) {
      expect_correct(AttendCase(spec_of(dtype, q_heads, kv_heads, 32), 16,
                                {{1, 40, 2}, {2, 55, 2}, {1, 34, 2}}));
    }
  }
}

TEST_P(Kernels, match_the_oracle_with_windows_and_causal_chunks) {
  for (const DType dtype : dtypes()) {
    for (const int32_t window : {0, 1, 17, 64, 100}) {
      AttentionSpec spec = spec_of(dtype, 2, 1, 64);
      spec.window = window;
      expect_correct(AttendCase(spec, 16, {{40, 300}, {70, 70}, {34, 1}, {9, 800}}));
    }
  }
}

TEST_P(Kernels, are_right_on_large_scores_and_zero_queries) {
  for (const DType dtype : dtypes()) {
    AttendCase c(spec_of(dtype, 2, 1, 128), 16, {{1, 2}, {2, 150}});
    for (int64_t i = 0; i < 128; ++i) store_element(c.q.data(), i, dtype, 64.0f);
    c.fill_token(c.k, 0, 0, -64.0f);
    c.fill_token(c.k, 0, 1, -64.0f);
    expect_correct(c);
    for (int64_t i = 0; i < int64_t{c.q_rows} * 256; ++i) store_element(c.q.data(), i, dtype, 0);
    expect_correct(c);
  }
}

TEST_P(Kernels, follow_every_scale) {
  for (const DType dtype : dtypes()) {
    for (const float scale : {0.0f, -0.3f, 1e-6f, 1.0f}) {
      AttentionSpec spec = spec_of(dtype, 4, 2, 64);
      spec.scale = scale;
      expect_correct(AttendCase(spec, 16, {{1, 70, 2}, {3, 45, 2}, {20, 33, 2}}));
    }
  }
}

TEST_P(Kernels, invisible_tokens_change_no_bit) {
  ThreadPool pool(1);
  constexpr float kInf = std::numeric_limits<float>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  for (const DType dtype : dtypes()) {
    for (const int32_t page : {4, 16}) {
      // Eight rows end at eight positions; the last sequence sees nothing but its own token.
      AttentionSpec spec = spec_of(dtype, 4, 2, 72);
      AttendCase c(spec, page, {{8, 77}, {20, 140}, {3, 1}});
      const Plan plan = c.plan(profile());
      // Token 69 + i of sequence 0 is seen by its rows i and later; those past the end by nobody.
      const int32_t poisoned = 73;
      for (const float value : {0.0f, kNan, kInf, -kInf, 1e30f}) {
        AttendCase dirty = c;
        for (int32_t token = 77; token % page != 0; ++token) {
          dirty.fill_token(dirty.k, 0, token, value);
          dirty.fill_token(dirty.v, 0, token, value);
        }
        for (std::vector<std::byte> AttendCase::*tensor : {&AttendCase::k, &AttendCase::v}) {
          dirty.fill_token(dirty.*tensor, 0, poisoned, value);
        }
        const Output a = c.run(plan, kernels(dtype), pool);
        const Output b = dirty.run(plan, kernels(dtype), pool);
        const int64_t row_bytes = 4 * 72 * dtype_bytes(dtype);
        const int64_t before = (poisoned - 69) * row_bytes;
        EXPECT_EQ(std::memcmp(a.out.data(), b.out.data(), before), 0) << GetParam().name << value;
        EXPECT_EQ(std::memcmp(a.out.data() + 8 * row_bytes, b.out.data() + 8 * row_bytes,
                              a.out.size() - 8 * row_bytes),
                  0);
        const auto lse_before = [&](const Output& o) {
          return std::span(o.lse).first((poisoned - 69) * 4);
        };
        EXPECT_TRUE(same_bits(lse_before(a), lse_before(b)));
        // Rows that see a NaN value must show it.
        if (std::isnan(value)) {
          EXPECT_TRUE(std::isnan(load_element(b.out.data(), int64_t{7} * 4 * 72, dtype)));
        }
      }
    }
  }
}

/// Expects o and lse of exactly the rows of `sequence` to be NaN, all of them.
void expect_nan_only_in(int32_t sequence, const AttendCase& c, const Output& output) {
  for (int64_t row = 0; row < c.q_rows; ++row) {
    const bool inside = row >= c.q_indptr[sequence] && row < c.q_indptr[sequence + 1];
    for (int64_t i = row * c.spec.q_heads; i < (row + 1) * c.spec.q_heads; ++i) {
      ASSERT_EQ(std::isnan(output.lse[i]), inside) << "lse " << i;
      for (int64_t d = i * c.spec.head_dim; d < (i + 1) * c.spec.head_dim; ++d) {
        const float o = load_element(output.out.data(), d, c.spec.dtype);
        ASSERT_EQ(std::isnan(o), inside) << "o " << d;
      }
    }
  }
}

TEST_P(Kernels, a_visible_nan_shows_however_the_tokens_are_cut) {
  ThreadPool pool(1);
  for (const DType dtype : dtypes()) {
    for (const int32_t own : {1, 2, 3, 4, 15, 16, 17}) {
      for (int variant = 0; variant < 16; ++variant) {
        PlanOptions options;
        options.sharing = variant & 1 ? Sharing::kAll : Sharing::kNone;
        options.batch_invariant = (variant & 2) != 0;
        options.cut_tokens = 256;
        AttentionSpec spec = spec_of(dtype, 4, 2, 72);
        spec.soft_cap = variant & 4 ? 30.0f : 0.0f;
        // A payload of all bits must not make a number of it either.
        const float nan = std::bit_cast<float>(variant & 8 ? 0xffffffffu : 0x7fc00000u);
        const Sequence some{1, 256 + own, 16};
        const AttendCase clean(spec, 16, {some, some, {2, 256 + own, 16}, some});
        SCOPED_TRACE(fmt::format("{} {} own {} variant {}", GetParam().name, dtype_name(dtype), own,
                                 variant));
        const auto run = [&](const AttendCase& c) {
          return c.run(c.plan(profile(), options), kernels(dtype), pool);
        };
        AttendCase in_key = clean;
        in_key.fill_token(in_key.k, 0, 256, nan);
        expect_nan_only_in(0, in_key, run(in_key));
        AttendCase in_query = clean;
        in_query.sinks.assign(4, 1.0f);
        store_element(in_query.q.data(), in_query.row_elements() + 5, dtype, nan);
        const Output output = run(in_query);
        EXPECT_TRUE(std::isnan(output.lse[4]));
        EXPECT_TRUE(std::isnan(load_element(output.out.data(), in_query.row_elements(), dtype)));
        EXPECT_TRUE(in_query.check(output).passed());
      }
    }
  }
}

TEST_P(Kernels, a_scale_of_zero_hides_no_nan) {
  ThreadPool pool(1);
  for (const DType dtype : dtypes()) {
    AttentionSpec spec = spec_of(dtype, 4, 2, 72);
    spec.scale = 0;
    for (const float value : {NAN, INFINITY, -INFINITY}) {
      AttendCase c(spec, 16, {{1, 20}, {40, 50}});
      for (int32_t head = 0; head < 4; ++head) {
        store_element(c.q.data(), head * 72 + 71, dtype, value);
      }
      const Output output = c.run(c.plan(profile()), kernels(dtype), pool);
      expect_nan_only_in(0, c, output);
      EXPECT_TRUE(c.check(output).passed());
    }
  }
}

TEST_P(Kernels, rows_that_see_nothing_are_empty) {
  ThreadPool pool(1);
  for (const DType dtype : dtypes()) {
    const AttentionSpec spec = spec_of(dtype, 8, 2, 64);
    const AttendCase c(spec, 16, {{34, 1}, {3, 0}});
    const Output output = c.run(c.plan(profile()), kernels(dtype), pool);
    EXPECT_TRUE(c.check(output).passed());
    for (int64_t i = 0; i < 33 * 8; ++i) {
      EXPECT_EQ(output.lse[i], -std::numeric_limits<float>::infinity());
      for (int64_t d = 0; d < 64; ++d) {
        EXPECT_EQ(load_element(output.out.data(), i * 64 + d, dtype), 0.0f);
      }
    }
  }
}

TEST_P(Kernels, rows_keep_their_bits_among_other_rows_when_batch_invariant) {
  ThreadPool pool(2);
  for (const DType dtype : dtypes()) {
    PlanOptions options;
    options.batch_invariant = true;
    options.cut_tokens = 64;
    const AttentionSpec spec = spec_of(dtype, 4, 2, 80);
    const std::vector<Sequence> all{{1, 200, 8}, {5, 333, 8}, {1, 140, 8},
                                    {9, 131, 8}, {1, 64},     {40, 900}};
    AttendCase together(spec, 16, all);
    const Output whole = together.run(together.plan(profile(2), options), kernels(dtype), pool);
    for (int32_t s = 0; s < static_cast<int32_t>(all.size()); ++s) {
      SCOPED_TRACE(fmt::format("{} {} sequence {}", GetParam().name, dtype_name(dtype), s));
      const AttendCase alone = together.alone(s);
      const Output one = alone.run(alone.plan(profile(1), options), kernels(dtype), pool);
      together.expect_same_rows(s, one, whole);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, Kernels, ::testing::ValuesIn(targets()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace pando::testing
