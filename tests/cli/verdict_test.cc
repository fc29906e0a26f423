// The judge itself: a wrong answer must not pass.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "cases/runner.h"
#include "cases/suites.h"
#include "core/convert.h"

namespace pando::cases {
namespace {

Case small_case() {
  Case problem;
  Rng rng(2);
  problem.tables = page_tables(prefix_shape(4, 40, 9, 2), {}, rng);
  problem.spec.q_heads = 4;
  problem.spec.kv_heads = 2;
  problem.spec.head_dim = 64;
  fill_data(problem, {.seed = 2});
  return problem;
}

class Verdict : public testing::Test {
 protected:
  Case problem_ = small_case();
  Reference reference_{problem_};
  Runner runner_;
  Output output_ = runner_.attend(problem_, {});

  void set(int64_t element, float value) {
    store_element(output_.out.data(), element, DType::kBF16, value);
  }
  bool passes() { return reference_.check(output_).passed(); }
};

TEST_F(Verdict, the_right_answer_passes) { EXPECT_TRUE(passes()); }

TEST_F(Verdict, equals_that_of_check_result) {
  const CheckResult mine = reference_.check(output_);
  const CheckResult whole =
      check_result(problem_.problem(), output_.view(), output_.lse_or_null(), {});
  EXPECT_EQ(mine.got.max_err_out, whole.got.max_err_out);
  EXPECT_EQ(mine.allowed.out, whole.allowed.out);
  EXPECT_EQ(mine.allowed.lse, whole.allowed.lse);
}

TEST_F(Verdict, one_wrong_element_fails) {
  set(777, load_element(output_.out.data(), 777, DType::kBF16) + 0.05f);
  EXPECT_FALSE(passes());
}

TEST_F(Verdict, one_nan_fails) {
  set(0, std::numeric_limits<float>::quiet_NaN());
  EXPECT_FALSE(passes());
}

TEST_F(Verdict, one_infinite_lse_fails) {
  output_.lse[3] = -std::numeric_limits<float>::infinity();
  EXPECT_FALSE(passes());
}

TEST_F(Verdict, a_small_error_of_lse_fails) {
  output_.lse[3] += 1e-4f;
  EXPECT_FALSE(passes());
}

TEST_F(Verdict, one_changed_bit_is_seen) {
  const Output again = runner_.attend(problem_, {});
  EXPECT_TRUE(same_bits(problem_, output_, again));
  output_.out.data()[100] ^= std::byte{1};
  EXPECT_FALSE(same_bits(problem_, output_, again));
}

TEST_F(Verdict, a_strided_output_holds_the_same_bits) {
  RunOptions strided;
  strided.strided = true;
  const Output gaps = runner_.attend(problem_, strided);
  EXPECT_GT(gaps.head_stride, 64);
  EXPECT_EQ(gaps.overrun, "");
  EXPECT_TRUE(same_bits(problem_, output_, gaps));
}

TEST(SampleRows, keeps_the_first_and_the_last_row_and_the_budget) {
  const Case problem = small_case();
  EXPECT_EQ(sample_rows(problem, 1 << 30).size(), 8u);
  const std::vector<int32_t> few = sample_rows(problem, 1);
  EXPECT_EQ(few, (std::vector<int32_t>{0, 7}));
}

TEST(Subset, gives_the_same_rows_as_the_whole) {
  const Case whole = small_case();
  const Case part = subset(whole, {3, 1});
  Runner runner;
  RunOptions options;
  options.plan.batch_invariant = true;
  const Output a = runner.attend(whole, options);
  const Output b = runner.attend(part, options);
  EXPECT_TRUE(same_row_bits(whole, a, 6, b, 0));
  EXPECT_TRUE(same_row_bits(whole, a, 3, b, 3));
}

TEST(Outcome, an_infinite_tolerance_proves_nothing) {
  Outcome outcome;
  CheckResult vacuous;
  vacuous.allowed.out = std::numeric_limits<double>::infinity();
  outcome.add(vacuous, "any");
  EXPECT_EQ(outcome.status, Status::kFailed);
}

TEST(Outcome, is_skipped_only_when_all_its_parts_are) {
  Outcome outcome;
  outcome.absorb(Outcome::skipped("not supported"));
  EXPECT_EQ(outcome.status, Status::kSkipped);
  EXPECT_EQ(outcome.note, "not supported");
  Outcome ran;
  ran.runs = 1;
  outcome.absorb(ran);
  EXPECT_EQ(outcome.status, Status::kPassed);
  EXPECT_EQ(outcome.note, "");
  outcome.absorb(Outcome::skipped("nor this"));
  EXPECT_EQ(outcome.status, Status::kPassed);
  EXPECT_EQ(outcome.runs, 1);
}

TEST(Outcome, keeps_the_first_failure_and_the_tightest_run) {
  Outcome outcome;
  CheckResult good;
  good.got.max_err_out = 1;
  good.allowed.out = 4;
  CheckResult tight = good;
  tight.got.max_err_out = 3;
  outcome.add(good, "good");
  outcome.add(tight, "tight");
  EXPECT_EQ(outcome.run, "tight");
  EXPECT_EQ(outcome.status, Status::kPassed);
  CheckResult wrong = good;
  wrong.got.max_err_out = 5;
  outcome.add(wrong, "wrong");
  outcome.fail("later");
  EXPECT_EQ(outcome.status, Status::kFailed);
  EXPECT_TRUE(outcome.note.starts_with("wrong: ")) << outcome.note;
  EXPECT_EQ(outcome.runs, 3);
}

}  // namespace
}  // namespace pando::cases
