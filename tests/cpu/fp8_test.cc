// fp8 KV in every kernel on every vector target.
#include <bit>
#include <cmath>
#include <vector>

#include "cpu/kernel_targets.h"
#include "support/message_of.h"

#if defined(__x86_64__)
#include <xmmintrin.h>

#include "cpu/matrix_vectors.h"
#endif

namespace pando::testing {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

AttentionSpec fp8_spec(DType dtype, int32_t q_heads, int32_t kv_heads, int32_t head_dim) {
  AttentionSpec spec = spec_of(dtype, q_heads, kv_heads, head_dim);
  spec.kv_dtype = DType::kE4M3;
  return spec;
}

class Fp8 : public Kernels {
 protected:
  Output run(const AttendCase& c, const PlanOptions& options = {}, int workers = 1) {
    ThreadPool pool(workers);
    return c.run(c.plan(profile(workers), options), kernels(c.spec.dtype, true), pool);
  }
};

void expect_all_codes() {
  float got[256];
  e4m3_values(got);
  for (int code = 0; code < 256; ++code) {
    const float want = e4m3_to_float(static_cast<uint8_t>(code));
    if (std::isnan(want)) {
      EXPECT_TRUE(std::isnan(got[code])) << code;
    } else {
      EXPECT_EQ(std::bit_cast<uint32_t>(got[code]), std::bit_cast<uint32_t>(want)) << code;
    }
  }
}

TEST_P(Fp8, every_code_is_converted_exactly) { expect_all_codes(); }

#if defined(__x86_64__)
TEST_P(Fp8, also_where_subnormal_numbers_are_taken_for_0) {
  const uint32_t mode = _mm_getcsr();
  _mm_setcsr(mode | 0x8040);
  expect_all_codes();
  _mm_setcsr(mode);
}

TEST(Fp8Table, has_every_code_exactly) {
  for (int code = 0; code < 128; ++code) {
    const float want = e4m3_to_float(static_cast<uint8_t>(code));
    const float got = bf16_to_float(kFp8Table.bits[code]);
    EXPECT_TRUE(got == want || (std::isnan(got) && std::isnan(want))) << code << ": " << got;
  }
}
#endif

TEST_P(Fp8, is_right_for_all_head_dims_and_groups) {
  for (const DType dtype : dtypes()) {
    for (const int32_t head_dim : {8, 40, 64, 136, 256}) {
      expect_correct(AttendCase(fp8_spec(dtype, 6, 3, head_dim), 16,
                                {{1, 200, 8}, {5, 159, 8}, {40, 150, 8}, {3, 1}}));
    }
    for (const int32_t group : {1, 4, 7}) {
      expect_correct(
          AttendCase(fp8_spec(dtype, 2 * group, 2, 64), 16, {{1, 130, 4}, {2, 65, 4}, {9, 64}}));
    }
  }
}

TEST_P(Fp8, is_right_in_every_layout_split_and_variant) {
  for (const Layout layout : {Layout::kHnd, Layout::kNhd, Layout::kPadded}) {
    AttendCase c(fp8_spec(DType::kBF16, 4, 2, 72), 16, {{1, 300, 8}, {5, 259, 8}, {64, 99}},
                 layout);
    expect_correct(c, {.sharing = Sharing::kAll}, 3);
    expect_correct(c, {.batch_invariant = true, .cut_tokens = 64}, 2);
    c.spec.soft_cap = 2;
    c.sinks = {0.5f, -kInf, 3, -1};
    expect_correct(c, {.sharing = Sharing::kAll}, 3);
    c.draw_trees(5);
    expect_correct(c);
    c.spec.scale = -0.3f;
    expect_correct(c);
  }
}

TEST_P(Fp8, one_scale_is_that_of_all_heads) {
  AttendCase c(fp8_spec(DType::kBF16, 6, 3, 64), 16, {{1, 300, 8}, {5, 259, 8}});
  c.k_scale = {0.3f};
  c.v_scale = {1.7f};
  expect_correct(c);
  const Output one = run(c);
  c.k_scale.assign(3, 0.3f);
  c.v_scale.assign(3, 1.7f);
  EXPECT_EQ(one, run(c));
}

TEST_P(Fp8, unseen_nan_changes_no_bit_and_seen_nan_shows) {
  for (const int32_t q_len : {1, 40}) {
    AttendCase c(fp8_spec(DType::kBF16, 4, 2, 64), 16, {{q_len, 77}, {q_len, 77}});
    const Output clean = run(c);
    for (int32_t token = 77; token < 80; ++token) {
      c.fill_token(c.k, 0, token, kNan);
      c.fill_token(c.v, 0, token, kNan);
    }
    EXPECT_EQ(run(c), clean);
    c.fill_token(c.v, 1, 3, kNan);
    const Output seen = run(c);
    EXPECT_TRUE(std::isnan(load_element(seen.out.data(), q_len * c.row_elements(), DType::kBF16)));
    EXPECT_FALSE(std::isnan(load_element(seen.out.data(), 0, DType::kBF16)));
  }
}

TEST_P(Fp8, seen_nan_of_a_key_shows_beside_a_shared_prefix) {
  for (const DType dtype : dtypes()) {
    for (const Sharing sharing : {Sharing::kNone, Sharing::kAll}) {
      AttendCase c(fp8_spec(dtype, 4, 2, 64), 16, {{1, 257, 16}, {1, 257, 16}});
      c.fill_token(c.k, 1, 256, kNan);
      const Output output = run(c, {.sharing = sharing});
      EXPECT_FALSE(std::isnan(output.lse[0]));
      EXPECT_TRUE(std::isnan(output.lse[4]));
      EXPECT_TRUE(std::isnan(load_element(output.out.data(), c.row_elements(), dtype)));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Targets, Fp8, ::testing::ValuesIn(targets()),
                         [](const auto& info) { return info.param.name; });

class Fp8Call : public ::testing::Test {
 protected:
  std::string refusal(const std::function<void(AttendArgs&)>& spoil) {
    return message_of(ErrorCode::kInvalidArgument, [&] {
      const Plan plan = c.plan(cpu_profile(1));
      const Workspace workspace(plan.workspace_bytes());
      Output output = c.blank_output();
      AttendArgs args = c.args(output, workspace.span());
      spoil(args);
      CpuExecutor executor(1);
      attend(plan, args, executor);
    });
  }
  AttendCase c{fp8_spec(DType::kBF16, 8, 4, 64), 16, {{1, 100, 4}, {2, 90, 4}}};
};

TEST_F(Fp8Call, missing_scales_are_refused_by_name) {
  EXPECT_EQ(refusal([](AttendArgs& a) { a.k_scale = {}; }),
            "k_scale: got 0 scales, want 1, or 4 for as many kv heads, since KV is fp8");
  EXPECT_EQ(refusal([](AttendArgs& a) { a.v_scale = {}; }),
            "v_scale: got 0 scales, want 1, or 4 for as many kv heads, since KV is fp8");
}

TEST_F(Fp8Call, scales_of_a_wrong_length_or_value_are_refused_by_name) {
  EXPECT_EQ(refusal([](AttendArgs& a) { a.k_scale = a.k_scale.first(3); }),
            "k_scale: got 3 scales, want 1, or 4 for as many kv heads, since KV is fp8");
  for (const float wrong : {0.0f, -1.0f, kInf, kNan}) {
    c.v_scale[2] = wrong;
    EXPECT_EQ(refusal([](AttendArgs&) {}),
              fmt::format("v_scale[2]: got {}, want a finite positive number", wrong));
  }
}

TEST_F(Fp8Call, scales_without_fp8_are_refused_by_name) {
  c.spec.kv_dtype = std::nullopt;
  c.k.resize(2 * c.k.size());
  c.v.resize(2 * c.v.size());
  EXPECT_EQ(refusal([](AttendArgs& a) { a.v_scale = {}; }),
            "k_scale: got 4 scales, want none for KV of bf16");
}

TEST_F(Fp8Call, a_plan_reads_half_the_bytes) {
  const PlanHeader fp8 = c.plan(cpu_profile(1)).header();
  const int64_t kv_bytes = fp8.cost.kv_bytes, io_bytes = fp8.cost.io_bytes;
  EXPECT_EQ(fp8.kv_dtype, DType::kE4M3);
  c.spec.kv_dtype = std::nullopt;
  const Plan bf16 = c.plan(cpu_profile(1));
  EXPECT_EQ(2 * kv_bytes, bf16.cost().kv_bytes);
  EXPECT_EQ(io_bytes, bf16.cost().io_bytes);
  EXPECT_EQ(bf16.header().kv_dtype, DType::kBF16);
}

TEST_F(Fp8Call, another_kv_dtype_is_refused_by_name) {
  const auto refused = [&] {
    return message_of(ErrorCode::kInvalidArgument, [&] { c.plan(cpu_profile(1)); });
  };
  c.spec.kv_dtype = DType::kF16;
  EXPECT_EQ(refused(), "kv_dtype: got fp16, want bf16, as dtype, or fp8");
  c.spec.kv_dtype = static_cast<DType>(9);
  EXPECT_EQ(refused(), "kv_dtype: got code 9, want bf16, as dtype, or fp8");
  c.spec.kv_dtype = std::nullopt;
  c.spec.dtype = DType::kE4M3;
  EXPECT_EQ(refused(), "dtype: got fp8, want fp32, bf16 or fp16");
}

}  // namespace
}  // namespace pando::testing
