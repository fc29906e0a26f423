// The one LSE merge.
#include "pando/merge.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <vector>

namespace pando {
namespace {

constexpr float kEmpty = -std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

/// A partial result of two dimensions.
struct Partial {
  std::array<float, 2> o;
  float lse;
};

Partial merged(Partial a, const Partial& b) {
  merge_into(a.o.data(), &a.lse, b.o.data(), b.lse, 2);
  return a;
}

TEST(Merge, two_empties_give_an_empty_whatever_they_contain) {
  for (const float left : {0.0f, 1.0f, kNan, kInf, -kInf}) {
    for (const float right : {0.0f, -2.0f, kNan, kInf, -kInf}) {
      const Partial got = merged({{left, left}, kEmpty}, {{right, right}, kEmpty});
      EXPECT_EQ(got.o[0], 0.0f);
      EXPECT_EQ(got.o[1], 0.0f);
      EXPECT_EQ(got.lse, kEmpty);
    }
  }
}

TEST(Merge, an_empty_side_changes_no_bit_whatever_it_contains) {
  const Partial full{{0.1f, -7.0f}, -3.3f};
  for (const float content : {0.0f, kNan, kInf, -kInf}) {
    const Partial empty{{content, content}, kEmpty};
    for (const Partial& got : {merged(full, empty), merged(empty, full)}) {
      EXPECT_EQ(got.o, full.o);
      EXPECT_EQ(got.lse, full.lse);
    }
  }
}

TEST(Merge, weights_of_empties_are_zero) {
  const MergeWeights both = merge_weights(kEmpty, kEmpty);
  EXPECT_EQ(both.a, 0.0f);
  EXPECT_EQ(both.b, 0.0f);
  EXPECT_EQ(both.lse, kEmpty);
  const MergeWeights left = merge_weights(2.0f, kEmpty);
  EXPECT_EQ(left.a, 1.0f);
  EXPECT_EQ(left.b, 0.0f);
  EXPECT_EQ(left.lse, 2.0f);
  const MergeWeights right = merge_weights(kEmpty, 2.0f);
  EXPECT_EQ(right.a, 0.0f);
  EXPECT_EQ(right.b, 1.0f);
  EXPECT_EQ(right.lse, 2.0f);
}

TEST(Merge, equal_sides_are_averaged_at_any_magnitude) {
  for (const float lse : {0.0f, 1e4f, -1e4f, -46340.257f, 1e30f, -1e30f}) {
    const Partial got = merged({{1.0f, 4.0f}, lse}, {{3.0f, 0.0f}, lse});
    EXPECT_FLOAT_EQ(got.o[0], 2.0f) << lse;
    EXPECT_FLOAT_EQ(got.o[1], 2.0f) << lse;
    EXPECT_FLOAT_EQ(got.lse, lse + std::log(2.0f)) << lse;
  }
}

TEST(Merge, a_side_too_small_to_matter_leaves_the_other_alone) {
  const Partial large{{5.0f, -5.0f}, 1e4f};
  const Partial small{{kNan, kInf}, -1e4f};  // its weight is exactly 0, so it is not read
  for (const Partial& got : {merged(large, small), merged(small, large)}) {
    EXPECT_EQ(got.o, large.o);
    EXPECT_EQ(got.lse, large.lse);
  }
}

TEST(Merge, no_dimensions_merges_the_lse_alone) {
  float lse = 1.0f;
  merge_into(nullptr, &lse, nullptr, 1.0f, 0);
  EXPECT_FLOAT_EQ(lse, 1.0f + std::log(2.0f));
}

/// lse in [-100, 100] in steps of 1/100, or empty (with NaN contents) one time in eight.
rc::Gen<Partial> partials() {
  return rc::gen::map(rc::gen::tuple(rc::gen::inRange(0, 8), rc::gen::inRange(-10000, 10001),
                                     rc::gen::inRange(-1000, 1001), rc::gen::inRange(-1000, 1001)),
                      [](const std::tuple<int, int, int, int>& t) {
                        const auto& [kind, lse, x, y] = t;
                        if (kind == 0) return Partial{{kNan, kNan}, kEmpty};
                        return Partial{{static_cast<float>(x) / 100, static_cast<float>(y) / 100},
                                       static_cast<float>(lse) / 100};
                      });
}

void assert_close(const Partial& a, const Partial& b) {
  RC_ASSERT((a.lse == kEmpty) == (b.lse == kEmpty));
  if (a.lse == kEmpty) return;
  RC_ASSERT(std::fabs(a.lse - b.lse) <= 4e-5f);
  for (int d = 0; d < 2; ++d) RC_ASSERT(std::fabs(a.o[d] - b.o[d]) <= 1e-4f);
}

RC_GTEST_PROP(Merge, is_associative_up_to_rounding, ()) {
  const Partial a = *partials();
  const Partial b = *partials();
  const Partial c = *partials();
  assert_close(merged(merged(a, b), c), merged(a, merged(b, c)));
}

RC_GTEST_PROP(Merge, is_commutative_to_the_bit, ()) {
  const Partial a = *partials();
  const Partial b = *partials();
  const Partial ab = merged(a, b);
  const Partial ba = merged(b, a);
  RC_ASSERT(ab.o == ba.o);
  RC_ASSERT(ab.lse == ba.lse);
}

RC_GTEST_PROP(Merge, weights_are_positive_and_sum_to_one, ()) {
  const float a = static_cast<float>(*rc::gen::inRange(-100000, 100001)) / 10;
  const float b = static_cast<float>(*rc::gen::inRange(-100000, 100001)) / 10;
  const MergeWeights w = merge_weights(a, b);
  RC_ASSERT(w.a >= 0.0f && w.b >= 0.0f);
  RC_ASSERT(std::fabs(w.a + w.b - 1.0f) <= 2 * std::numeric_limits<float>::epsilon());
  RC_ASSERT(w.lse >= std::fmax(a, b));
}

RC_GTEST_PROP(Merge, of_any_partition_is_the_softmax_of_the_whole, ()) {
  const auto scores =
      *rc::gen::nonEmpty(rc::gen::container<std::vector<int>>(rc::gen::inRange(-500, 501)));
  Partial got{{kNan, kNan}, kEmpty};
  double sum = 0;
  double weighted = 0;
  double top = -1e9;
  for (const int s : scores) top = std::fmax(top, s / 10.0);
  for (size_t i = 0; i < scores.size(); ++i) {
    const double score = scores[i] / 10.0;
    const double value = std::sin(static_cast<double>(i));
    sum += std::exp(score - top);
    weighted += std::exp(score - top) * value;
    got = merged(got, {{static_cast<float>(value), 1.0f}, static_cast<float>(score)});
  }
  RC_ASSERT(std::fabs(got.o[0] - weighted / sum) <= 1e-4);
  RC_ASSERT(std::fabs(got.o[1] - 1.0) <= 1e-4);
  RC_ASSERT(std::fabs(got.lse - (top + std::log(sum))) <= 1e-4);
}

}  // namespace
}  // namespace pando
