#include "cases/generate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <set>

#include "cases/shapes_table.h"
#include "cases/suites.h"
#include "core/convert.h"
#include "pando/error.h"
#include "pando/forest.h"

namespace pando::cases {
namespace {

Tables tables_of(const ForestShape& shape, int32_t page_tokens) {
  Rng rng(5);
  return page_tables(shape, {.page_tokens = page_tokens}, rng);
}

using Segments = std::vector<ExpectedSegment>;

TEST(Rng, gives_the_numbers_that_the_standard_fixes) {
  Rng rng(5489);
  uint64_t last = 0;
  for (int i = 0; i < 10000; ++i) last = rng.bits();
  EXPECT_EQ(last, 9981545732273789042u);  // [rand.predef]: the 10000th of mt19937_64
}

TEST(Rng, normals_have_the_moments_of_a_normal) {
  Rng rng(1);
  const int count = 1 << 20;
  double sum = 0, square = 0, fourth = 0, cube = 0;
  for (int i = 0; i < count; ++i) {
    const double x = rng.normal();
    sum += x;
    square += x * x;
    cube += x * x * x;
    fourth += x * x * x * x;
  }
  EXPECT_NEAR(sum / count, 0, 0.005);
  EXPECT_NEAR(square / count, 1, 0.01);
  EXPECT_NEAR(cube / count, 0, 0.02);
  EXPECT_NEAR(fourth / count, 2.97, 0.05);
}

TEST(Tree, nodes_spread_evenly_over_their_parents) {
  const Tables tables = tables_of(tree_shape({1, 2, 4}, {32, 16, 8}), 8);
  EXPECT_EQ(expected_forest(tables), (Segments{{0, 32, {0, 1, 2, 3}},
                                               {32, 48, {0, 1}},
                                               {32, 48, {2, 3}},
                                               {48, 56, {0}},
                                               {48, 56, {1}},
                                               {48, 56, {2}},
                                               {48, 56, {3}}}));
}

TEST(Tree, a_page_in_which_a_node_ends_is_copied_for_each_child) {
  const Tables tables = tables_of(tree_shape({1, 2}, {10, 3}), 4);
  // Tokens 8 and 9 belong to the root, but lie in a page with own tokens.
  EXPECT_EQ(expected_forest(tables), (Segments{{0, 8, {0, 1}}, {8, 13, {0}}, {8, 13, {1}}}));
}

TEST(Tree, sequences_without_own_tokens_are_duplicates) {
  const Tables tables = tables_of(tree_shape({1, 3}, {10, 0}), 4);
  EXPECT_EQ(expected_forest(tables), (Segments{{0, 10, {0, 1, 2}}}));
}

TEST(Tree, an_only_child_continues_its_parent) {
  const Tables tables = tables_of(tree_shape({1, 1, 2}, {8, 8, 4}), 4);
  EXPECT_EQ(expected_forest(tables), (Segments{{0, 16, {0, 1}}, {16, 20, {0}}, {16, 20, {1}}}));
}

TEST(Tree, a_sequence_may_end_inside_the_tree) {
  ForestShape shape;
  const int32_t root = shape.add_node(-1, 8);
  shape.add_sequence(root);
  shape.add_sequence(shape.add_node(root, 4));
  shape.add_sequence(-1);
  EXPECT_EQ(expected_forest(tables_of(shape, 4)), (Segments{{0, 8, {0, 1}}, {8, 12, {1}}}));
}

TEST(Tree, impossible_levels_are_refused) {
  EXPECT_THROW(tree_shape({}, {}), Error);
  EXPECT_THROW(tree_shape({1, 2}, {3}), Error);
  EXPECT_THROW(tree_shape({4, 2}, {3, 3}), Error);
  EXPECT_THROW(tree_shape({1}, {-1}), Error);
  EXPECT_THROW(tree_shape({0}, {1}), Error);
  EXPECT_THROW(tree_shape({kMostNodes + 1}, {1}), Error);
  EXPECT_THROW(prefix_shape(kMostNodes, 1, 1), Error);
}

TEST(Tables, pages_are_distinct_and_within_the_pool) {
  const Tables tables = tables_of(tree_shape({2, 6}, {100, 33}), 16);
  tables.check("tables", ErrorCode::kInvalidArgument);
  std::set<int32_t> ids(tables.page_ids.begin(), tables.page_ids.end());
  EXPECT_EQ(static_cast<int64_t>(ids.size()), tables.num_pages - 3);
}

TEST(Discover, finds_the_expected_forest_of_every_random_case) {
  for (uint64_t seed = 0; seed < 300; ++seed) {
    const Tables tables = random_case(seed).problem.tables;
    EXPECT_EQ(as_expected(discover(tables.batch())), expected_forest(tables)) << "seed " << seed;
  }
}

TEST(Discover, finds_the_expected_forest_of_every_shape) {
  for (const ShapeList list : {ShapeList::kShapes, ShapeList::kTrees}) {
    for (const Shape& shape : shapes(list)) {
      const Tables tables = shape_tables(scaled(shape, 0.25), DType::kBF16).tables;
      EXPECT_EQ(as_expected(discover(tables.batch())), expected_forest(tables)) << shape.name;
    }
  }
}

TEST(Data, the_same_seed_gives_the_same_bytes) {
  const RandomCase a = random_case(11);
  const RandomCase b = random_case(11);
  ASSERT_EQ(a.problem.k.size(), b.problem.k.size());
  EXPECT_EQ(std::memcmp(a.problem.k.data(), b.problem.k.data(), a.problem.k.size()), 0);
  EXPECT_EQ(a.problem.tables.page_ids, b.problem.tables.page_ids);
}

/// One sequence of 13 tokens in pages of 4, head_dim 8.
Case thirteen_tokens(DataKind kind, Unused unused, DType dtype = DType::kF32) {
  Case problem;
  problem.tables = tables_of(prefix_shape(1, 0, 13), 4);
  problem.spec.q_heads = problem.spec.kv_heads = 1;
  problem.spec.head_dim = 8;
  problem.spec.dtype = dtype;
  fill_data(problem, {.kind = kind, .unused = unused});
  return problem;
}

TEST(Data, is_pinned_to_these_bytes) {
  const Case problem = thirteen_tokens(DataKind::kRandn, Unused::kZero, DType::kBF16);
  uint64_t hash = 0;
  for (const std::byte b : problem.k.span()) hash = mix_seed(hash, std::to_integer<uint64_t>(b));
  EXPECT_EQ(hash, 15857886679499195270u);
}

TEST(Data, unused_slots_hold_what_was_asked_for) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    const Case problem = thirteen_tokens(DataKind::kRandn, Unused::kNan, dtype);
    int64_t nans = 0;
    const int64_t count = problem.kv_elements();
    for (int64_t i = 0; i < count; ++i)
      nans += std::isnan(load_element(problem.k.data(), i, dtype));
    EXPECT_EQ(nans, count - 13 * 8);
  }
}

TEST(Data, tokens_that_no_row_sees_can_be_spoilt_too) {
  Case problem = thirteen_tokens(DataKind::kRandn, Unused::kZero);
  problem.spec.window = 5;
  fill_unused(problem, Unused::kNan, true);
  int64_t numbers = 0;
  for (int64_t i = 0; i < problem.kv_elements(); ++i) {
    numbers += !std::isnan(load_element(problem.v.data(), i, DType::kF32));
  }
  EXPECT_EQ(numbers, 5 * 8);
}

TEST(Data, adversarial_has_large_zero_and_duplicate_keys) {
  Case problem;
  problem.tables = tables_of(prefix_shape(1, 0, 4000), 16);
  problem.spec.q_heads = problem.spec.kv_heads = 1;
  problem.spec.head_dim = 8;
  problem.spec.dtype = DType::kF32;
  fill_data(problem, {.kind = DataKind::kAdversarial, .unused = Unused::kZero});
  const auto* k = reinterpret_cast<const float*>(problem.k.data());
  int large = 0, zero = 0, duplicate = 0;
  for (int64_t token = 1; token < problem.tables.num_pages * 16; ++token) {
    const float* key = k + token * 8;
    const bool is_zero = std::all_of(key, key + 8, [](float x) { return x == 0; });
    zero += is_zero;
    large += std::any_of(key, key + 8, [](float x) { return std::fabs(x) > 20; });
    duplicate += !is_zero && std::memcmp(key, key - 8, 8 * sizeof(float)) == 0;
  }
  EXPECT_GT(large, 100);
  EXPECT_GT(zero, 100);
  EXPECT_GT(duplicate, 100);
}

TEST(Shapes, sizes_are_those_of_the_table) {
  const Shape& shape = find_shape("l3-64-32k");
  EXPECT_EQ(shape.batch(), 64);
  EXPECT_EQ(shape.unique_tokens(), 32768 + 64 * 128);
  EXPECT_EQ(shape.sequence_tokens(), 32768 + 128);
  EXPECT_EQ(shape.kv_bytes(DType::kBF16), int64_t{32768 + 64 * 128} * 8 * 128 * 4);
  EXPECT_EQ(shapes(ShapeList::kShapes).size(), 23u);
  EXPECT_EQ(shapes(ShapeList::kTrees).size(), 5u);
  EXPECT_EQ(shapes(ShapeList::kSweep).size(), 15u);
}

TEST(Shapes, every_name_is_of_one_shape) {
  std::set<std::string> names;
  for (const ShapeList list :
       {ShapeList::kShapes, ShapeList::kTrees, ShapeList::kSweep, ShapeList::kScale}) {
    for (const Shape& shape : shapes(list)) {
      EXPECT_TRUE(names.insert(shape.name).second) << shape.name;
      EXPECT_EQ(&find_shape(shape.name), &shape);
      EXPECT_EQ(shape.nodes.size(), shape.tokens.size()) << shape.name;
      EXPECT_EQ(shape.q_heads % shape.kv_heads, 0) << shape.name;
    }
  }
}

TEST(Shapes, scaling_keeps_the_ratio_of_prefix_and_suffix) {
  const Shape& shape = find_shape("l3-64-32k");
  const double scale = scale_to_fit(shape, DType::kBF16, 20 << 20, 1e18);
  EXPECT_EQ(scale, 1.0 / 8);
  EXPECT_EQ(scaled(shape, scale).tokens, (std::vector<int32_t>{4096, 16}));
}

TEST(Shapes, an_unknown_name_is_refused_with_the_list) {
  try {
    find_shape("l3-9");
    FAIL();
  } catch (const Error& error) {
    EXPECT_NE(error.message.find("l3-9"), std::string::npos);
    EXPECT_NE(error.message.find("pat-a"), std::string::npos);
  }
}

}  // namespace
}  // namespace pando::cases
