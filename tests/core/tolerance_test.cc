// The one tolerance.
#include "core/tolerance.h"

#include <gtest/gtest.h>

#include <string>

namespace pando {
namespace {

class ToleranceOf : public testing::TestWithParam<DType> {};

TEST_P(ToleranceOf, is_twice_the_error_of_the_rounding_reference) {
  const Tolerance got =
      tolerance({.max_err_out = 0.3, .max_err_lse = 0.01, .max_abs_out = 1.0, .max_abs_lse = 5.0},
                GetParam());
  EXPECT_DOUBLE_EQ(got.out, 0.6);
  EXPECT_DOUBLE_EQ(got.lse, 0.02);
}

TEST_P(ToleranceOf, allows_two_roundings_when_the_reference_is_exact_by_luck) {
  const DType dtype = GetParam();
  const Tolerance got = tolerance({.max_abs_out = 2.0, .max_abs_lse = 0.0}, dtype);
  EXPECT_GE(got.out, 2.0 * dtype_epsilon(dtype));
  EXPECT_LE(got.out, 2.0 * dtype_epsilon(dtype) * 10);
  EXPECT_GT(got.lse, 0.0);
  EXPECT_LT(got.lse, 1e-6);
}

TEST_P(ToleranceOf, of_an_all_zero_output_is_zero) {
  EXPECT_EQ(tolerance({}, GetParam()).out, 0.0);
}

TEST_P(ToleranceOf, scales_with_the_output_and_is_no_fixed_number) {
  const double small = tolerance({.max_abs_out = 1e-3}, GetParam()).out;
  const double large = tolerance({.max_abs_out = 1.0}, GetParam()).out;
  EXPECT_DOUBLE_EQ(large, 1000 * small);
  EXPECT_LT(large, 0.1);
}

/// Scores of 1 that are sums of terms of 1000, each rounded once in fp32.
TEST_P(ToleranceOf, allows_one_rounding_of_every_term) {
  const DType dtype = GetParam();
  const double epsilon = dtype_epsilon(DType::kF32);
  const ErrorStats few{.max_abs_out = 1, .max_abs_lse = 1, .max_terms = 16};
  const ErrorStats many{.max_abs_out = 1, .max_abs_lse = 1, .max_terms = 1000};
  EXPECT_DOUBLE_EQ(tolerance(few, dtype).lse, 8 * epsilon);
  EXPECT_DOUBLE_EQ(tolerance(many, dtype).lse, 500 * epsilon);
  EXPECT_NEAR(tolerance(many, dtype).out - tolerance(few, dtype).out, 492 * epsilon, epsilon);
}

INSTANTIATE_TEST_SUITE_P(Dtypes, ToleranceOf,
                         testing::Values(DType::kF32, DType::kBF16, DType::kF16),
                         [](const auto& info) { return std::string(dtype_name(info.param)); });

}  // namespace
}  // namespace pando
