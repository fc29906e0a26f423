// The one mask rule, as a table: what each row of a sequence sees.
#include "core/mask.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <limits>
#include <ostream>
#include <string>
#include <vector>

namespace pando {

// Found by argument-dependent lookup, so that a failure prints the range.
static void PrintTo(const VisibleRange& range, std::ostream* out) {
  *out << "[" << range.begin << ", " << range.end << ")";
}

namespace {

struct MaskCase {
  std::string name;
  int32_t q_len;
  int32_t kv_len;
  bool causal;
  int32_t window;
  std::vector<VisibleRange> want;  // a row each
};

class VisibleRangeTable : public testing::TestWithParam<MaskCase> {};

TEST_P(VisibleRangeTable, is_as_written) {
  const MaskCase& c = GetParam();
  AttentionSpec spec;
  spec.causal = c.causal;
  spec.window = c.window;
  for (int32_t row = 0; row < c.q_len; ++row) {
    EXPECT_EQ(visible_range(spec, 100 + row, row, c.q_len, c.kv_len), c.want[row]) << row;
  }
}

INSTANTIATE_TEST_SUITE_P(
    Cases, VisibleRangeTable,
    testing::Values(
        // name, q_len, kv_len, causal, window, ranges
        MaskCase{"decode", 1, 7, true, 0, {{0, 7}}},
        MaskCase{"several_new_tokens", 3, 7, true, 0, {{0, 5}, {0, 6}, {0, 7}}},
        MaskCase{"prefill_from_nothing", 3, 3, true, 0, {{0, 1}, {0, 2}, {0, 3}}},
        MaskCase{"more_rows_than_tokens", 4, 2, true, 0, {{0, 0}, {0, 0}, {0, 1}, {0, 2}}},
        MaskCase{"no_tokens", 2, 0, true, 0, {{0, 0}, {0, 0}}},
        MaskCase{"bidirectional", 2, 5, false, 0, {{0, 5}, {0, 5}}},
        MaskCase{"bidirectional_no_tokens", 1, 0, false, 0, {{0, 0}}},
        MaskCase{"window_of_one", 2, 5, true, 1, {{3, 4}, {4, 5}}},
        MaskCase{"window_inside", 2, 9, true, 3, {{5, 8}, {6, 9}}},
        MaskCase{"window_as_long_as_kv", 1, 4, true, 4, {{0, 4}}},
        MaskCase{"window_one_short_of_kv", 1, 4, true, 3, {{1, 4}}},
        MaskCase{"window_longer_than_kv", 1, 4, true, 9, {{0, 4}}},
        MaskCase{"window_without_causal", 2, 6, false, 2, {{3, 6}, {4, 6}}},
        MaskCase{"window_and_more_rows_than_tokens", 3, 1, true, 2, {{0, 0}, {0, 0}, {0, 1}}}),
    [](const auto& info) { return info.param.name; });

/// What `q_len` rows with these bits see, as strings: a letter for each position, 'x' where seen.
std::vector<std::string> tree_rows(const std::vector<uint64_t>& masks, int32_t kv_len) {
  AttentionSpec spec;
  spec.tree_mask = masks;
  const auto q_len = static_cast<int32_t>(masks.size());
  std::vector<std::string> rows;
  for (int32_t row = 0; row < q_len; ++row) {
    const RowMask mask = row_mask(spec, row, row, q_len, kv_len);
    std::string text(kv_len, '.');
    for (int32_t position = 0; position < kv_len; ++position) {
      if (mask.sees(position)) text[position] = 'x';
    }
    rows.push_back(text);
  }
  return rows;
}

TEST(TreeMask, rows_see_the_prefix_and_their_ancestors) {
  // Two branches of one root: 0 <- 1 <- 3 and 0 <- 2.
  EXPECT_EQ(tree_rows({0b0001, 0b0011, 0b0101, 0b1011}, 7),
            (std::vector<std::string>{"xxxx...", "xxxxx..", "xxxx.x.", "xxxxx.x"}));
}

TEST(TreeMask, rows_may_see_no_draft_token_and_not_themselves) {
  EXPECT_EQ(tree_rows({0b00, 0b01}, 4), (std::vector<std::string>{"xx..", "xxx."}));
  EXPECT_EQ(tree_rows({0b10}, 1), (std::vector<std::string>{"."}));
}

TEST(TreeMask, rows_before_the_first_position_are_not_seen) {
  EXPECT_EQ(tree_rows({0b111, 0b101, 0b010}, 2), (std::vector<std::string>{"xx", ".x", "x."}));
  EXPECT_EQ(tree_rows({0b111, 0b101, 0b010}, 0), (std::vector<std::string>{"", "", ""}));
}

TEST(TreeMask, a_chain_is_a_causal_mask) {
  for (const int32_t kv_len : {0, 1, 63, 64, 65, 200}) {
    for (const int32_t q_len : {1, 2, 63, 64}) {
      std::vector<uint64_t> masks(q_len);
      for (int32_t row = 0; row < q_len; ++row) masks[row] = ~uint64_t{0} >> (63 - row);
      AttentionSpec tree;
      tree.tree_mask = masks;
      for (int32_t row = 0; row < q_len; ++row) {
        EXPECT_EQ(row_mask(tree, row, row, q_len, kv_len), row_mask({}, row, row, q_len, kv_len))
            << kv_len << " " << q_len << " " << row;
      }
    }
  }
}

TEST(TreeMask, all_64_bits_count) {
  const std::vector<uint64_t> masks(64, uint64_t{1} << 63);
  for (const std::string& row : tree_rows(masks, 100)) {
    EXPECT_EQ(row, std::string(36, 'x') + std::string(63, '.') + "x");
  }
}

TEST(VisibleRange, explicit_ranges_replace_causal_and_window) {
  const std::vector<VisibleRange> visible = {{0, 1}, {2, 9}, {1, 3}};
  AttentionSpec spec;
  spec.causal = true;
  spec.window = 1;
  spec.visible = visible;
  EXPECT_EQ(visible_range(spec, 0, 0, 3, 9), (VisibleRange{0, 1}));
  EXPECT_EQ(visible_range(spec, 1, 1, 3, 9), (VisibleRange{2, 9}));
  EXPECT_EQ(visible_range(spec, 2, 2, 3, 9), (VisibleRange{1, 3}));
}

TEST(VisibleRange, explicit_ranges_are_indexed_by_row_of_the_batch) {
  const std::vector<VisibleRange> visible = {{0, 1}, {0, 2}, {0, 3}};
  AttentionSpec spec;
  spec.visible = visible;
  // The first row of a sequence that starts at row 2 of the batch.
  EXPECT_EQ(visible_range(spec, 2, 0, 1, 9), (VisibleRange{0, 3}));
}

TEST(VisibleRange, explicit_ranges_are_clamped) {
  constexpr int32_t kMin = std::numeric_limits<int32_t>::min();
  constexpr int32_t kMax = std::numeric_limits<int32_t>::max();
  const std::vector<VisibleRange> visible = {{kMin, kMax}, {3, 99}, {7, 9}, {4, 2}, {-5, -1}};
  const std::vector<VisibleRange> want = {{0, 5}, {3, 5}, {5, 5}, {2, 2}, {0, 0}};
  AttentionSpec spec;
  spec.visible = visible;
  for (int32_t row = 0; row < 5; ++row) {
    EXPECT_EQ(visible_range(spec, row, row, 5, 5), want[row]) << row;
  }
}

TEST(VisibleRange, largest_sizes_do_not_overflow) {
  constexpr int32_t kMax = std::numeric_limits<int32_t>::max();
  AttentionSpec spec;
  EXPECT_EQ(visible_range(spec, 0, 0, 1, kMax), (VisibleRange{0, kMax}));
  spec.window = kMax;
  EXPECT_EQ(visible_range(spec, 0, 0, 1, kMax), (VisibleRange{0, kMax}));
  EXPECT_EQ(visible_range(spec, 0, 0, kMax, 1), (VisibleRange{0, 0}));
}

RC_GTEST_PROP(VisibleRange, lies_in_the_sequence_and_grows_with_the_row, ()) {
  AttentionSpec spec;
  spec.causal = *rc::gen::arbitrary<bool>();
  spec.window = *rc::gen::inRange(0, 40);
  const int32_t q_len = *rc::gen::inRange(1, 40);
  const int32_t kv_len = *rc::gen::inRange(0, 40);
  VisibleRange before{0, 0};
  for (int32_t row = 0; row < q_len; ++row) {
    const VisibleRange range = visible_range(spec, row, row, q_len, kv_len);
    RC_ASSERT(0 <= range.begin);
    RC_ASSERT(range.begin <= range.end);
    RC_ASSERT(range.end <= kv_len);
    RC_ASSERT(before.begin <= range.begin);
    RC_ASSERT(before.end <= range.end);
    before = range;
  }
  // The last row is the last token: it sees itself.
  RC_ASSERT(before.end == kv_len);
  RC_ASSERT(kv_len == 0 || before.begin < before.end);
}

}  // namespace
}  // namespace pando
