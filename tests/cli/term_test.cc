#include <gtest/gtest.h>

#include "cases/generate.h"
#include "pando/plan.h"
#include "term/picture.h"
#include "term/style.h"

namespace pando::term {
namespace {

TEST(Units, are_grouped_and_have_three_digits) {
  EXPECT_EQ(grouped(0), "0");
  EXPECT_EQ(grouped(999), "999");
  EXPECT_EQ(grouped(1000), "1,000");
  EXPECT_EQ(grouped(1234567), "1,234,567");
  EXPECT_EQ(grouped(-1234), "-1,234");
  EXPECT_EQ(grouped(-123), "-123");
  EXPECT_EQ(bytes_text(512), "512 B");
  EXPECT_EQ(bytes_text(33554432), "33.6 MB");
  EXPECT_EQ(bytes_text(5e12), "5000 GB");
  EXPECT_EQ(time_text(1.234), "1.23 µs");
  EXPECT_EQ(time_text(45600), "45.6 ms");
  EXPECT_EQ(time_text(2.5e6), "2.50 s");
}

std::string picture(const cases::ForestShape& shape, Sharing sharing,
                    const Style& style = Style::plain()) {
  cases::Rng rng(1);
  const cases::Tables tables = cases::page_tables(shape, {}, rng);
  AttentionSpec spec;
  spec.q_heads = 8;
  spec.kv_heads = 2;
  spec.head_dim = 64;
  const Forest forest = discover(tables.batch());
  return forest_picture(forest, plan(forest, spec, cpu_profile(1), {.sharing = sharing}), style);
}

TEST(Picture, siblings_that_look_alike_take_one_line) {
  EXPECT_EQ(picture(cases::tree_shape({1, 2, 6}, {64, 32, 16}), Sharing::kAll),
            "  ████████████████████████ 64 tokens of 6 sequences         shared: read once\n"
            "  └─ ████████████ 2 × 32 tokens of 3 sequences              shared: read once\n"
            "     └─ ░░░░░░ 3 × 16 own tokens\n");
}

TEST(Picture, own_tokens_of_any_number_share_a_line) {
  cases::ForestShape shape;
  shape.add_node(-1, 32);
  for (const int32_t own : {5, 9, 16}) shape.add_sequence(shape.add_node(0, own));
  EXPECT_EQ(
      picture(shape, Sharing::kNone),
      "  ▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒ 32 tokens of 3 sequences         not shared: sharing is off\n"
      "  └─ ░░░░░░░░░░░░ 3 × 5–16 own tokens\n");
}

TEST(Picture, has_colour_only_when_asked) {
  const cases::ForestShape shape = cases::prefix_shape(3, 32, 16);
  EXPECT_EQ(picture(shape, Sharing::kAll).find('\x1b'), std::string::npos);
  EXPECT_NE(picture(shape, Sharing::kAll, Style::coloured()).find('\x1b'), std::string::npos);
}

TEST(Picture, an_empty_batch_is_an_empty_picture) { EXPECT_EQ(picture({}, Sharing::kAuto), ""); }

TEST(Picture, a_forest_of_many_looks_is_cut_short) {
  cases::ForestShape shape;
  for (int32_t i = 1; i <= 100; ++i) {
    const int32_t root = shape.add_node(-1, 16 * i);
    shape.add_sequence(root);
    shape.add_sequence(root);
  }
  const std::string text = picture(shape, Sharing::kAll);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 41);
  EXPECT_NE(text.find("… and 60 more lines"), std::string::npos);
}

}  // namespace
}  // namespace pando::term
