// The attend kernel's source, run on the host: its answers, and that they do not depend on luck.
#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "cases/suites.h"
#include "core/convert.h"
#include "cuda/device_test.h"
#include "cuda/invariance.h"
#include "cuda/kernels/attend/params.h"
#include "cuda/variant_cases.h"
#include "emulator/emulated_attend.h"
#include "plan/cuda_shapes.h"
#include "plan/schedule_reader.h"

namespace pando::cases {
namespace {

TEST(Divider, divides_every_number_below_two_to_the_31st) {
  for (int32_t divisor = 1; divisor <= 300; ++divisor) {
    const cuda::Divider by = cuda::Divider::by(divisor);
    const auto check = [&](int64_t n) {
      if (n < 0 || n > std::numeric_limits<int32_t>::max()) return;
      const auto number = static_cast<int32_t>(n);
      ASSERT_EQ(by.quotient(number), number / divisor) << number << " / " << divisor;
    };
    // Around multiples of the divisor, and of powers of two.
    for (int64_t factor = 1; factor < int64_t{1} << 31; factor = factor * 3 / 2 + 1) {
      for (int64_t near = -2; near <= 2; ++near) {
        check(factor * divisor + near);
        check(factor + near);
      }
    }
    check(std::numeric_limits<int32_t>::max());
  }
}

TEST_F(EmulatedAttend, agrees_with_the_oracle_for_every_shape_and_page_size) {
  for_each_cuda_shape(tree_shape({1, 2, 4}, {150, 70, 33}), {},
                      [](const Case& problem) { expect_correct(problem, 2); });
}

TEST_F(EmulatedAttend, fp8_agrees_with_the_oracle_for_every_shape_and_page_size) {
  for_each_cuda_shape(tree_shape({1, 2, 4}, {150, 70, 33}), DType::kE4M3,
                      [](const Case& problem) { expect_correct(problem, 2); });
}

TEST_F(EmulatedAttend, every_code_of_fp8_is_converted_exactly) {
  expect_exact_fp8([](const Case& problem) { return runner(1).attend(problem, {}); });
}

/// K and V of one scale each, long lists of units, and the same bits in any order of threads.
TEST_F(EmulatedAttend, fp8_agrees_with_the_oracle_in_any_order_of_threads) {
  Case problem = device_case(tree_shape({1, 4, 32}, {300, 100, 40}), 16);
  problem.spec.kv_dtype = DType::kE4M3;
  fill_data(problem, {.seed = 5});
  problem.k_scale = {0.07f};
  problem.v_scale = {0.05f};
  for (const int thread_blocks : {1, 4, 40}) expect_correct(problem, thread_blocks);
  const Output want = runner(4).attend(problem, {});
  for (const uint64_t seed : {1, 2, 3}) {
    EXPECT_TRUE(same_bits(problem, want, runner(4, seed).attend(problem, {}))) << "seed " << seed;
  }
}

TEST_F(EmulatedAttend, variants_agree_with_the_oracle_on_fp8) {
  for (VariantCase& each : variant_cases(128)) {
    if (!each.problem.tree_mask.empty()) continue;  // masks know nothing of elements
    SCOPED_TRACE(each.name);
    each.problem.spec.kv_dtype = DType::kE4M3;
    fill_data(each.problem, {.seed = 3});
    fill_unused(each.problem, Unused::kNan, true);
    expect_correct(each.problem, 3);
  }
}

TEST_F(EmulatedAttend, agrees_with_the_oracle_around_every_block) {
  ForestShape shape;
  for (const int32_t block : {8, 16, 64, 128, 256}) {
    for (const int32_t tokens : {block - 1, block, block + 1}) {
      shape.add_sequence(shape.add_node(-1, tokens), tokens % 3 + 1);
    }
  }
  for (const int32_t head_dim : kHeadDims) {
    for (const int blocks : {1, 2, 7}) {
      expect_correct(at_head_dim(head_dim, device_case(shape, 64)), blocks);
    }
  }
}

TEST_F(EmulatedAttend, agrees_with_the_oracle_in_windows) {
  for (const int32_t head_dim : kHeadDims) {
    for (const int32_t window : {1, 7, 8, 9, 130}) {
      Case problem = at_head_dim(head_dim, device_case(prefix_shape(9, 200, 61, 5)));
      problem.spec.window = window;
      fill_unused(problem, Unused::kMixed, true);
      expect_correct(problem, 3);
    }
  }
}

TEST_F(EmulatedAttend, variants_agree_with_the_oracle) {
  // With few thread blocks, which have many units, at a head_dim of 64 or of 128; else with many.
  for (const int32_t head_dim : kHeadDims) {
    int32_t nth = 0;
    for (const VariantCase& each : variant_cases(head_dim)) {
      SCOPED_TRACE(::testing::Message() << each.name << ", head_dim " << head_dim);
      const bool few = head_dim <= 128 && (head_dim / 64 + nth++) % 2 == 0;
      expect_correct(each.problem, few ? 3 : 20);
    }
  }
}

/// A prefix of whole tiles for several blocks, and split ones, in one unit and in many.
TEST_F(EmulatedAttend, agrees_with_the_oracle_over_whole_and_split_tiles) {
  for (const auto& [dtype, page_tokens] : {std::pair{DType::kBF16, 16}, {DType::kF16, 1}}) {
    Case problem = device_case(prefix_shape(35, 400, 90), page_tokens);
    problem.spec.dtype = dtype;
    problem = at_head_dim(256, std::move(problem));
    fill_unused(problem, Unused::kNan, true);
    for (const int thread_blocks : {1, 5}) expect_correct(problem, thread_blocks);
  }
}

/// A warpgroup that passed over the other's slots does not mistake an old phase for the one it
/// waits for: units of few tiles, in which whole ones follow split ones.
TEST_F(EmulatedAttend, whole_tiles_after_split_ones_are_waited_for) {
  const Case problem = at_head_dim(256, device_case(prefix_shape(70, 128, 8)));
  const Reference reference(problem);
  for (uint64_t seed = 0; seed < 20; ++seed) {
    EXPECT_TRUE(reference.check(runner(2, seed).attend(problem, {})).passed()) << "seed " << seed;
  }
}

/// What stands beside a partial to fill four up has no weight, and nothing of it counts: infinity
/// times 0 would be NaN.
TEST_F(EmulatedAttend, an_infinite_v_is_infinite_where_partials_are_merged) {
  constexpr uint16_t kInfinity = 0x7f80;  // bf16
  Case problem = device_case(prefix_shape(4, 1024, 0));
  ASSERT_EQ(problem.spec.dtype, DType::kBF16);
  ASSERT_EQ(problem.order, KvOrder::kHnd);
  const int64_t page = int64_t{problem.spec.kv_heads} * problem.tables.page_tokens;
  auto* const v = reinterpret_cast<uint16_t*>(problem.v.data());
  for (int32_t head = 0; head < problem.spec.kv_heads; ++head) {
    const int64_t token = problem.tables.page_ids[0] * page + head * problem.tables.page_tokens;
    v[token * problem.spec.head_dim] = kInfinity;
  }
  for (const int thread_blocks : {7, 11, 13, 24}) {
    const Output output = runner(thread_blocks).attend(problem, {});
    const auto* const out = reinterpret_cast<const uint16_t*>(output.out.data());
    for (int64_t row = 0; row < problem.tables.q_rows(); ++row) {
      for (int64_t head = 0; head < problem.spec.q_heads; ++head) {
        EXPECT_EQ(out[row * output.row_stride + head * output.head_stride], kInfinity)
            << "row " << row << ", head " << head << ", thread blocks " << thread_blocks;
      }
    }
  }
}

TEST_F(EmulatedAttend, strided_outputs_and_no_lse_are_written_and_nothing_else) {
  for (const int32_t head_dim : kHeadDims) {
    Case problem = device_case(prefix_shape(33, 200, 61));
    problem.spec.head_dim = head_dim;
    problem.q_head_stride = head_dim + 8;
    problem.q_row_stride = 8 * problem.q_head_stride + 16;
    fill_data(problem, {.seed = 5});
    const Reference reference(problem);
    RunOptions options;
    for (const bool want_lse : {false, true}) {
      options.strided = true;
      options.want_lse = want_lse;
      const Output output = runner(5).attend(problem, options);
      EXPECT_EQ(output.overrun, "");
      EXPECT_TRUE(reference.check(output).passed()) << "head_dim " << head_dim;
    }
  }
}

TEST_F(EmulatedAttend, finds_k_and_v_with_gaps_between_tokens_heads_and_pages) {
  for (const int32_t head_dim : kHeadDims) {
    for_each_layout_with_gaps(prefix_shape(9, 200, 61), head_dim,
                              [&](const Case& problem) { expect_correct(problem, 5); });
  }
}

/// Few rows with many partials each: teams of warps merge them.
TEST_F(EmulatedAttend, agrees_with_the_oracle_where_teams_merge) {
  for (const int32_t head_dim : kHeadDims) {
    Case problem = device_case(prefix_shape(2, 40 * 128, 9, 1));
    problem.spec.q_heads = 2;
    problem.spec.kv_heads = 1;
    problem.spec.head_dim = head_dim;
    fill_data(problem, {.seed = 6});
    expect_correct(problem, 40);
    DeviceProfile profile = h100_profile();
    profile.workers = 40;
    const Plan made = plan(discover(problem.tables.batch()), problem.attention(), profile);
    const auto* const header =
        reinterpret_cast<const cuda::ScheduleHeader*>(made.schedule().data());
    EXPECT_GT(header->merge_team_shift, 0);
  }
}

/// Lists in two parts, over pairs of blocks and over single ones: the thread blocks of a cluster
/// exchange halves of their rows.
TEST_F(EmulatedAttend, agrees_with_the_oracle_where_clusters_exchange_rows) {
  for (const auto& [head_dim, kv_dtype] : {std::pair{64, DType::kBF16},
                                           {128, DType::kBF16},
                                           {256, DType::kBF16},
                                           {128, DType::kE4M3}}) {
    for (const auto& [sequences, prefix] : {std::pair{13, 900}, {62, 2000}}) {
      SCOPED_TRACE(::testing::Message() << sequences << " sequences, head_dim " << head_dim << ", "
                                        << dtype_name(kv_dtype));
      Case problem = device_case(prefix_shape(sequences, prefix, 40));
      problem.spec.head_dim = head_dim;
      problem.spec.kv_dtype = kv_dtype;
      problem.sinks = {0.5f, -1, 2, -3, 0, 1, 4, -2};
      fill_data(problem, {.seed = 7});
      fill_unused(problem, Unused::kNan, true);
      Runner on = runner(sequences < 16 ? 4 : 8);
      expect_correct(problem, on.attend(problem, {}));
      EXPECT_FALSE(pando::testing::ScheduleReader(on.plan()).decoded().exchanges.empty());
    }
  }
}

/// Thread blocks of one tile beside others: their rows go to out, to partials and to the other of a
/// cluster. With sinks they run the code of the others.
TEST_F(EmulatedAttend, agrees_with_the_oracle_where_thread_blocks_have_one_tile) {
  const auto expect_one_tile = [](const Case& problem, int thread_blocks) {
    Runner on = runner(thread_blocks);
    expect_correct(problem, on.attend(problem, {}));
    return pando::testing::ScheduleReader(on.plan()).decoded();
  };
  for (const int32_t head_dim : {64, 128, 256}) {
    for (const auto& [sequences, prefix, own] :
         {std::tuple{8, 512, 128}, {16, 100, 3}, {13, 240, 0}, {5, 128, 200}}) {
      SCOPED_TRACE(::testing::Message() << sequences << " sequences, " << prefix << " and " << own
                                        << " tokens, head_dim " << head_dim);
      Case problem = device_case(prefix_shape(sequences, prefix, own));
      problem.spec.head_dim = head_dim;
      problem.spec.dtype = head_dim == 128 ? DType::kF16 : DType::kBF16;
      fill_data(problem, {.seed = 11});
      fill_unused(problem, Unused::kNan, true);
      EXPECT_GT(expect_one_tile(problem, 24).one_tile, 0);
      problem.sinks = {0.5f, -1, 2, -3, 0, 1, 4, -2};
      EXPECT_GT(expect_one_tile(problem, 24).one_tile, 0);
    }
    // One tile that exchanges rows with two.
    Case problem = device_case(prefix_shape(13, 370, 0));
    problem.spec.head_dim = head_dim;
    fill_data(problem, {.seed = 12});
    fill_unused(problem, Unused::kNan, true);
    const auto decoded = expect_one_tile(problem, 4);
    EXPECT_EQ(decoded.one_tile, 0);
    EXPECT_FALSE(decoded.exchanges.empty());
  }
}

/// More units in a thread block than are fetched ahead of it, over pairs of blocks that lack their
/// second in the last list.
TEST_F(EmulatedAttend, agrees_with_the_oracle_over_units_that_follow_each_other) {
  constexpr int kThreadBlocks = 2, kUnitsEach = 5;
  RunOptions options;
  options.plan = {.sharing = Sharing::kAll, .batch_invariant = true, .cut_tokens = 128};
  for (const auto& [head_dim, kv_dtype] :
       {std::pair{128, DType::kBF16}, {256, DType::kBF16}, {128, DType::kE4M3}}) {
    for (const int32_t sequences : {13, 40}) {
      SCOPED_TRACE(::testing::Message() << sequences << " sequences, head_dim " << head_dim << ", "
                                        << dtype_name(kv_dtype));
      Case problem = device_case(prefix_shape(sequences, 700, 30));
      problem.spec.head_dim = head_dim;
      problem.spec.kv_dtype = kv_dtype;
      fill_data(problem, {.seed = 9});
      fill_unused(problem, Unused::kNan, true);
      Runner on_two = runner(kThreadBlocks);
      expect_correct(problem, on_two.attend(problem, options));
      const auto decoded = pando::testing::ScheduleReader(on_two.plan()).decoded();
      EXPECT_GE(decoded.units.size(), size_t{kThreadBlocks * kUnitsEach});
      const int64_t rows = std::ssize(decoded.rows) * on_two.plan().group();
      EXPECT_EQ((rows + cuda::kBlockRows - 1) / cuda::kBlockRows % 2, 1) << "blocks";
    }
  }
}

TEST_F(EmulatedAttend, gives_the_same_bits_in_any_order_of_threads) {
  for (const int32_t head_dim : kHeadDims) {
    const Case problem =
        at_head_dim(head_dim, device_case(tree_shape({1, 4, 32}, {300, 100, 40}), 16));
    const Output want = runner(4).attend(problem, {});
    for (const uint64_t seed : {1, 2, 3}) {
      EXPECT_TRUE(same_bits(problem, want, runner(4, seed).attend(problem, {})))
          << "head_dim " << head_dim << ", seed " << seed;
    }
  }
}

TEST_F(EmulatedAttend, batch_invariant_bits_do_not_depend_on_the_batch) {
  const Company company{.sharers = 5, .strangers = 6, .prefix = 300, .own = 70, .cut_tokens = 128};
  Runner on_five = runner(5);
  const auto expect_same = [&](DType dtype, int32_t q_len, int32_t window, int32_t head_dim) {
    SCOPED_TRACE(::testing::Message() << dtype_name(dtype) << " " << head_dim << ", " << q_len
                                      << " rows, window " << window);
    expect_invariant(on_five, company_case(company, q_len, window, dtype, head_dim), company, 2);
  };
  for (const int32_t head_dim : kHeadDims) {
    expect_same(DType::kBF16, 1, 0, head_dim);
    expect_same(DType::kF16, 5, 0, head_dim);
    expect_same(DType::kBF16, 1, 77, head_dim);
    expect_same(DType::kF16, 9, 100, head_dim);
  }
}

TEST_F(EmulatedAttend, batch_invariant_bits_do_not_depend_on_the_batch_with_variants) {
  Runner on_five = runner(5);
  for (const int32_t head_dim : kHeadDims) {
    Company company{.sharers = 5, .strangers = 6, .prefix = 300, .own = 70, .cut_tokens = 128};
    const auto expect_same = [&](int32_t q_len, bool trees) {
      expect_invariant(on_five, company_with_variants(company, q_len, trees, head_dim), company, 2);
    };
    expect_same(1, false);
    expect_same(9, true);
    // Sequence 0 has one cut: its rows go to out at once, or by way of partials beside others'.
    company.prefix = company.own = 62;
    expect_same(1, false);
    expect_same(2, true);
  }
}

TEST_F(EmulatedAttend, batch_invariant_plans_agree_with_the_oracle) {
  RunOptions options;
  options.plan = {.sharing = Sharing::kAll, .batch_invariant = true, .cut_tokens = 256};
  for (const int32_t head_dim : kHeadDims) {
    for (const int32_t window : {0, 1, 9, 130}) {
      Case problem = at_head_dim(head_dim, device_case(tree_shape({1, 2, 9}, {300, 150, 61}, 3)));
      problem.spec.window = window;
      fill_unused(problem, Unused::kMixed, true);
      const Output output = runner(3).attend(problem, options);
      EXPECT_EQ(output.overrun, "");
      EXPECT_TRUE(Reference(problem).check(output).passed())
          << "head_dim " << head_dim << ", window " << window;
    }
  }
}

TEST_F(EmulatedAttend, passes_the_seed_suite) { expect_passes(seed_suite({.quick = true})); }
TEST_F(EmulatedAttend, passes_random_cases_on_fp8) {
  expect_passes(random_suite({.random_cases = 8, .seed = 50, .kv_dtype = DType::kE4M3}));
}
/// Terms of thousands that cancel under a soft cap.
TEST_F(EmulatedAttend, soft_caps_over_terms_that_cancel) {
  for (const uint64_t seed : {9042, 10404, 10480}) {
    expect_passes(random_suite({.random_cases = 1, .seed = seed}));
  }
}
TEST_F(EmulatedAttend, passes_random_cases) { expect_passes(random_suite({.random_cases = 12})); }

/// Rows of the edges; not 8, 9 and 12, which take minutes, nor 14 and 15, which never reach the
/// kernel.
class EmulatedEdges : public EmulatedAttend, public ::testing::WithParamInterface<int> {};

TEST_P(EmulatedEdges, row) {
  std::vector<SuiteCase> row = edges_suite({.quick = true});
  std::erase_if(row, [](const SuiteCase& each) {
    return !each.name.starts_with(fmt::format("{}-", GetParam()));
  });
  expect_passes(row);
}

INSTANTIATE_TEST_SUITE_P(, EmulatedEdges, ::testing::Values(2, 3, 4, 5, 6, 7, 10, 11, 13),
                         ::testing::PrintToStringParamName());

}  // namespace
}  // namespace pando::cases
