// Narrow units of the attend kernel, run on the host: few rows of fp8, one warp's mma at a time.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "core/convert.h"
#include "cuda/device_test.h"
#include "cuda/invariance.h"
#include "cuda/variant_cases.h"
#include "emulator/emulated_attend.h"
#include "plan/schedule_reader.h"

namespace pando::cases {
namespace {

class NarrowAttend : public EmulatedAttend {
 protected:
  enum class Expect { kAll, kSome };  ///< units that are narrow

  /// Sequences of so many tokens that share nothing, of `rows[i]` query rows each.
  static ForestShape apart(const std::vector<int32_t>& tokens, const std::vector<int32_t>& rows) {
    ForestShape shape;
    for (size_t i = 0; i < tokens.size(); ++i) {
      shape.add_sequence(shape.add_node(-1, tokens[i]), rows[i % rows.size()]);
    }
    return shape;
  }
  /// fp8, with NaN in all that nobody sees.
  static Case fp8_case(const ForestShape& shape, int32_t group, int32_t page_tokens = 16,
                       const std::function<void(Case&)>& change = {}) {
    Case problem = device_case(shape, page_tokens);
    problem.spec.kv_heads = group > 4 ? 1 : 2;
    problem.spec.q_heads = group * problem.spec.kv_heads;
    problem.spec.kv_dtype = DType::kE4M3;
    if (change) change(problem);
    fill_data(problem, {.seed = 9});
    fill_unused(problem, Unused::kNan, true);
    return problem;
  }
  /// Returns what the plan's schedule was.
  static testing::DecodedSchedule expect_narrow(const Case& problem, int thread_blocks,
                                                Expect narrow = Expect::kAll) {
    Runner on = runner(thread_blocks);
    const Output output = on.attend(problem, {});
    expect_correct(problem, output);
    testing::DecodedSchedule decoded = testing::ScheduleReader(on.plan()).decoded();
    const auto count = std::ranges::count(decoded.units, true, &testing::ScheduledUnit::narrow);
    EXPECT_GT(count, 0);
    EXPECT_EQ(count == std::ssize(decoded.units), narrow == Expect::kAll);
    return decoded;
  }
};

TEST_F(NarrowAttend, agrees_with_the_oracle_for_every_group_and_page_size) {
  for (const int32_t page_tokens : {1, 4, 16, 64}) {
    for (const auto& [group, rows] :
         std::vector<std::pair<int32_t, std::vector<int32_t>>>{{1, {5, 1, 7}},
                                                               {1, {1}},
                                                               {3, {1, 2}},
                                                               {4, {1, 2, 1}},
                                                               {4, {4}},
                                                               {5, {3}},
                                                               {16, {1}}}) {
      SCOPED_TRACE(::testing::Message()
                   << "group of " << group << ", " << rows[0] << " rows, pages of " << page_tokens);
      std::vector<int32_t> tokens = {131, 70, 33};
      if (group * rows[0] > 8) tokens = {203};
      const bool bf16 = page_tokens > 4 || group == 1;
      expect_narrow(fp8_case(apart(tokens, rows), group, page_tokens,
                             [&](Case& c) { c.spec.dtype = bf16 ? DType::kBF16 : DType::kF16; }),
                    2);
    }
  }
}

/// Shared tokens, sequences without kv, strides, and tokens before heads.
TEST_F(NarrowAttend, agrees_with_the_oracle_where_few_rows_share_tokens) {
  ForestShape shape = tree_shape({1, 2, 4}, {140, 70, 33});
  shape.add_sequence(shape.add_node(-1, 0));
  for (const DType dtype : {DType::kBF16, DType::kF16}) {
    expect_narrow(fp8_case(shape, 3, 16,
                           [&](Case& c) {
                             c.spec.dtype = dtype;
                             c.order = KvOrder::kNhd;
                             c.q_head_stride = 136;
                             c.q_row_stride = 6 * 136 + 8;
                           }),
                  3);
  }
}

/// Units of 16 rows each, several to a thread block, from the middle and the end of their blocks.
TEST_F(NarrowAttend, agrees_with_the_oracle_over_units_that_follow_each_other) {
  std::vector<int32_t> tokens(18, 150);
  tokens[3] = 37;
  tokens[17] = 641;
  const testing::DecodedSchedule decoded = expect_narrow(fp8_case(apart(tokens, {1}), 4), 2);
  EXPECT_EQ(decoded.units.size(), 2u * 5);
  EXPECT_TRUE(decoded.merges.empty());
}

/// Thread blocks with 64 rows beside narrow ones, and merges of both.
TEST_F(NarrowAttend, agrees_with_the_oracle_beside_units_of_many_rows) {
  std::vector<int32_t> tokens(12, 30), rows(12, 5);
  tokens[0] = tokens[1] = 1100;
  rows[0] = rows[1] = 1;
  EXPECT_FALSE(expect_narrow(fp8_case(apart(tokens, rows), 4), 9, Expect::kSome).merges.empty());
}

TEST_F(NarrowAttend, agrees_with_the_oracle_where_thread_blocks_share_a_sequence) {
  for (const auto& [group, sequences] : {std::pair{1, 1}, {4, 1}, {4, 3}, {16, 1}}) {
    SCOPED_TRACE(::testing::Message() << sequences << " sequences, group of " << group);
    Case problem = fp8_case(apart(std::vector<int32_t>(sequences, 1790 / sequences), {1}), group);
    problem.sinks.assign(problem.spec.q_heads, 0.5f);
    EXPECT_FALSE(expect_narrow(problem, 4 * problem.spec.kv_heads).merges.empty());
  }
}

TEST_F(NarrowAttend, agrees_with_the_oracle_in_windows) {
  for (const int32_t window : {1, 7, 9, 130}) {
    SCOPED_TRACE(window);
    const auto windowed = [&](Case& c) { c.spec.window = window; };
    expect_narrow(fp8_case(apart({200, 61, 300}, {5, 1}), 1, 16, windowed), 2);
    expect_narrow(fp8_case(apart({200, 61}, {1, 3}), 4, 4, windowed), 2);
  }
}

TEST_F(NarrowAttend, variants_agree_with_the_oracle) {
  const auto check = [](const char* what, int32_t group, const std::vector<int32_t>& rows,
                        const std::function<void(Case&)>& change) {
    for (const DType dtype : {DType::kBF16, DType::kF16}) {
      SCOPED_TRACE(::testing::Message() << what << ", " << dtype_name(dtype));
      expect_narrow(fp8_case(apart({200, 75}, rows), group, 16,
                             [&](Case& c) {
                               c.spec.dtype = dtype;
                               change(c);
                             }),
                    2);
    }
  };
  for (const float scale : {-0.4f, 0.0f}) {
    check("scale", 4, {1, 3}, [&](Case& c) { c.spec.scale = scale; });
  }
  for (const float cap : {0.5f, 50.0f}) {
    check("cap", 4, {2, 1}, [&](Case& c) {
      c.spec.soft_cap = cap;
      c.spec.scale = -0.4f;
    });
  }
  check("sinks", 4, {1, 3}, [](Case& c) { c.sinks = some_sinks(); });
  check("a tree of 16", 1, {9, 7}, [](Case& c) {
    Rng rng(3);
    c.tree_mask = random_trees(c.tables, rng);
  });
  check("any bits, with all else", 3, {3, 2}, [](Case& c) {
    c.tree_mask = any_trees(c.tables, 4);
    c.spec.soft_cap = 3;
    c.spec.scale = -0.3f;
    c.sinks.assign(6, 1.5f);
  });
}

/// Slots that are given back too early, and warps that run ahead of others.
TEST_F(NarrowAttend, gives_the_same_bits_in_any_order_of_threads) {
  std::vector<int32_t> tokens(5, 130);
  tokens[4] = 700;
  const Case problem = fp8_case(apart(tokens, {1}), 4);
  expect_narrow(problem, 6);
  const Output want = runner(6).attend(problem, {});
  for (const uint64_t seed : {1, 2}) {
    EXPECT_TRUE(same_bits(problem, want, runner(6, seed).attend(problem, {}))) << "seed " << seed;
  }
}

/// Queries become fp16 by a power of two for each row: whatever their range, scores stay.
class NarrowQueryRange : public NarrowAttend {
 protected:
  /// 16 rows of one sequence with elements from `query`(row, dimension, a normal number), and K,
  /// of codes, from `key`(dimension, a normal number).
  static void expect_range(DType dtype, float scale,
                           const std::function<float(int32_t, int32_t, float)>& query,
                           const std::function<float(int32_t, float)>& key) {
    Case problem = fp8_case(apart({140}, {4}), 4, 16, [&](Case& c) {
      c.spec.dtype = dtype;
      c.spec.scale = scale;
    });
    problem.k_scale = problem.v_scale = {1.0f / kFp8Sigma};
    Rng rng(8);
    for (int32_t row = 0; row < 4; ++row) {
      for (int32_t head = 0; head < 8; ++head) {
        for (int32_t d = 0; d < 128; ++d) {
          // A packed row is a query row's head of its group.
          const float element = query(row * 4 + head % 4, d, rng.normal());
          store_element(problem.q.data(), problem.q_offset(row, head) + d, dtype, element);
        }
      }
    }
    const KvLayout kv = problem.kv();
    for (int32_t token = 0; token < 140; ++token) {
      for (int32_t head = 0; head < 2; ++head) {
        const int64_t at = kv.offset(problem.tables.page_ids[token / 16], head, token % 16);
        for (int32_t d = 0; d < 128; ++d) {
          store_element(problem.k.data(), at + d, DType::kE4M3, key(d, rng.normal() * kFp8Sigma));
        }
      }
    }
    expect_narrow(problem, 2);
  }
  static float whole_key(int32_t, float normal) { return normal; }
};

/// Each row has its own power of two: an element that K does not look at is up to 2^20 times as
/// large as the others.
TEST_F(NarrowQueryRange, each_row_has_its_own_power_of_two) {
  for (const int32_t dimension : {0, 77, 127}) {
    expect_range(
        DType::kBF16, 0.1f,
        [&](int32_t row, int32_t d, float normal) {
          const float sign = row % 2 == 0 ? 1.0f : -1.0f;
          return d == dimension ? std::ldexp(sign, row * 5 / 4 + 1) : normal;
        },
        [&](int32_t d, float normal) { return d == dimension ? 0.0f : normal; });
  }
}

TEST_F(NarrowQueryRange, what_is_lost_of_a_row_is_nothing_beside_its_largest) {
  const auto mixed = [](float large, float small) {
    return [=](int32_t, int32_t d, float normal) { return normal * (d % 3 == 0 ? large : small); };
  };
  expect_range(DType::kBF16, 1e-31f, mixed(1e30f, 1e-20f), whole_key);
  expect_range(DType::kBF16, 1e29f, mixed(1e-30f, 1e-38f), whole_key);
  expect_range(DType::kF16, 1e-5f, mixed(1e4f, 1e-7f), whole_key);
}

TEST_F(NarrowQueryRange, rows_of_zeros_and_the_largest_and_least_of_bf16) {
  // Rows of zeros between others.
  expect_range(
      DType::kBF16, 0.1f,
      [](int32_t row, int32_t, float normal) { return row % 3 == 0 ? 0.0f : normal; }, whole_key);
  // The largest numbers, beside keys so small that no product overflows; the least code is 2^-9.
  const float largest = bf16_to_float(0x7f7f);
  expect_range(
      DType::kBF16, 1e-35f,
      [&](int32_t row, int32_t d, float normal) {
        if (row % 4 == 3) return normal;
        return normal < 0 ? -largest : d % 2 == 0 ? largest : largest / 2;
      },
      [](int32_t d, float normal) { return d % 16 == 0 ? std::copysign(0x1p-9f, normal) : 0.0f; });
  // Numbers that are not normal any more.
  expect_range(
      DType::kBF16, 3e37f, [](int32_t, int32_t, float normal) { return normal * 1e-38f; },
      whole_key);
}

}  // namespace
}  // namespace pando::cases
