#include "pando/plan.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>

#include "forest/batch_literal.h"
#include "pando/cpu.h"
#include "pando/error.h"
#include "plan/coverage.h"
#include "plan/cuda_shapes.h"
#include "support/message_of.h"

namespace pando {
namespace {

using testing::OwnedBatch;
using testing::plan_problem;

AttentionSpec spec_of(int32_t q_heads, int32_t kv_heads, int32_t head_dim = 128) {
  AttentionSpec spec;
  spec.q_heads = q_heads;
  spec.kv_heads = kv_heads;
  spec.head_dim = head_dim;
  return spec;
}

/// A round profile, so that what the tests expect does not move with calibrations.
DeviceProfile plain_profile(int32_t workers = 2) {
  DeviceProfile profile;
  std::strncpy(profile.name.data(), "plain", 63);
  profile.workers = workers;
  profile.row_tile = 64;
  profile.kv_tile = 16;
  profile.launch_us = 1;
  profile.item_us = 0.1;
  profile.partial_row_us = 0.1;
  profile.dram_bytes_per_us = 16e3;
  profile.cache_bytes_per_us = 32e3;
  profile.cache_bytes = 1 << 20;
  KernelRate rate;
  rate.narrow_rows = 4;
  rate.row_granule = 16;
  rate.narrow_ns = 0.02;
  rate.convert_ns = 0.02;
  rate.wide_ns = 0.01;
  rate.softmax_ns = 0.1;
  rate.peak_flops_per_us = 800e3;
  profile.rates.fill(rate);
  return profile;
}

/// `sequences` sequences of `own_pages` pages each after `shared_pages` common ones.
OwnedBatch shared_prefix(int32_t sequences, int32_t shared_pages, int32_t own_pages,
                         int32_t page_tokens = 16) {
  std::vector<std::vector<int32_t>> pages(sequences);
  int32_t next = shared_pages;
  for (auto& row : pages) {
    for (int32_t p = 0; p < shared_pages; ++p) row.push_back(p);
    for (int32_t p = 0; p < own_pages; ++p) row.push_back(next++);
  }
  return OwnedBatch::of(std::move(pages), page_tokens);
}

std::vector<Reason> reasons(const Plan& plan) {
  std::vector<Reason> all;
  for (const Decision& d : plan.decisions()) all.push_back(d.reason);
  return all;
}

TEST(Plan, empty_batch_has_no_work) {
  OwnedBatch batch;
  const Plan p = plan(discover(batch.view()), spec_of(8, 2), plain_profile());
  EXPECT_EQ(p.items().size(), 0u);
  EXPECT_EQ(p.merges().size(), 0u);
  EXPECT_EQ(p.cost().flops, 0);
}

TEST(Plan, default_plan_is_empty) {
  const Plan p;
  EXPECT_EQ(p.items().size(), 0u);
  EXPECT_EQ(p.workspace_bytes(), 0);
  EXPECT_EQ(p.group(), 1);
}

TEST(Plan, long_prefix_is_shared_and_read_once) {
  OwnedBatch batch = shared_prefix(32, 128, 4);
  const Plan p = plan(discover(batch.view()), spec_of(32, 8), plain_profile());
  EXPECT_EQ(reasons(p), std::vector{Reason::kShared});
  EXPECT_EQ(plan_problem(batch.view(), spec_of(32, 8), p), "");
  const int64_t token_bytes = 2 * 128 * 2 * 8;
  // 32 x 4 packed rows are two tiles of 64, so the prefix is streamed twice.
  EXPECT_EQ(p.cost().kv_bytes, (2 * 2048 + 32 * 64) * token_bytes);
  EXPECT_EQ(p.cost().unshared_kv_bytes, 32 * 2112 * token_bytes);
  EXPECT_EQ(p.cost().flops, int64_t{4} * 32 * 32 * 128 * 2112);
  EXPECT_LT(p.cost().predicted_us, p.cost().predicted_unshared_us);
  EXPECT_GE(p.cost().predicted_us, p.cost().roof_us);
}

TEST(Plan, short_prefix_is_not_shared_and_says_why) {
  OwnedBatch batch = shared_prefix(32, 1, 8);
  const Plan p = plan(discover(batch.view()), spec_of(32, 8), plain_profile());
  EXPECT_EQ(reasons(p), std::vector{Reason::kMergeCostsMore});
  EXPECT_GT(p.decisions()[0].costs_us, p.decisions()[0].saves_us);
  EXPECT_EQ(p.cost().kv_bytes, p.cost().unshared_kv_bytes);
  EXPECT_NE(explain(p).find("tokens [0, 16) x 32 sequences: not shared: merging costs more"),
            std::string::npos)
      << explain(p);
}

TEST(Plan, sequences_that_are_all_prefix_need_no_merge) {
  OwnedBatch batch = shared_prefix(8, 16, 0);
  PlanOptions options;
  options.sharing = Sharing::kAll;
  DeviceProfile profile = plain_profile(1);
  const Plan p = plan(discover(batch.view()), spec_of(8, 8), profile, options);
  EXPECT_EQ(p.items().size(), 1u);
  EXPECT_EQ(p.items()[0].partial, -1);
  EXPECT_TRUE(p.merges().empty());
  EXPECT_EQ(p.cost().partial_bytes, 0);
}

TEST(Plan, sequences_without_sharing_write_directly) {
  OwnedBatch batch = shared_prefix(16, 0, 8);
  const Plan p = plan(discover(batch.view()), spec_of(8, 8), plain_profile());
  EXPECT_EQ(p.items().size(), 16u);
  EXPECT_TRUE(p.merges().empty());
  EXPECT_TRUE(p.decisions().empty());
  EXPECT_NE(explain(p).find("no two sequences hold a page in common"), std::string::npos);
}

TEST(Plan, one_long_sequence_is_split_over_the_workers) {
  OwnedBatch batch = shared_prefix(1, 0, 512);
  const Plan p = plan(discover(batch.view()), spec_of(4, 1), plain_profile(8));
  EXPECT_GE(p.items().size(), 8u);
  EXPECT_EQ(plan_problem(batch.view(), spec_of(4, 1), p), "");
}

TEST(Plan, small_work_is_not_split) {
  OwnedBatch batch = shared_prefix(1, 0, 1);
  const Plan p = plan(discover(batch.view()), spec_of(4, 1), plain_profile(8));
  EXPECT_EQ(p.items().size(), 1u);
}

TEST(Plan, longest_items_come_first) {
  OwnedBatch batch = OwnedBatch::of({{1}, {2, 3, 4, 5, 6, 7, 8}, {9, 10}}, 16);
  const Plan p = plan(discover(batch.view()), spec_of(1, 1), plain_profile(1));
  ASSERT_EQ(p.items().size(), 3u);
  EXPECT_EQ(p.items()[0].token_end, 112);
  EXPECT_EQ(p.items()[1].token_end, 32);
  EXPECT_EQ(p.items()[2].token_end, 16);
}

TEST(Plan, window_drops_a_prefix_that_nobody_sees) {
  OwnedBatch batch = shared_prefix(8, 32, 8);
  AttentionSpec spec = spec_of(8, 2);
  spec.window = 100;
  PlanOptions options;
  options.sharing = Sharing::kAll;
  const Plan p = plan(discover(batch.view()), spec, plain_profile(), options);
  EXPECT_EQ(reasons(p), std::vector{Reason::kInvisible});
  EXPECT_EQ(plan_problem(batch.view(), spec, p), "");
  for (const WorkItem& item : p.items()) EXPECT_GE(item.token_begin, 32 * 16);
}

TEST(Plan, off_means_off) {
  OwnedBatch batch = shared_prefix(32, 128, 4);
  PlanOptions options;
  options.sharing = Sharing::kNone;
  const Plan p = plan(discover(batch.view()), spec_of(32, 8), plain_profile(), options);
  EXPECT_EQ(reasons(p), std::vector{Reason::kSharingOff});
  EXPECT_EQ(p.cost().kv_bytes, p.cost().unshared_kv_bytes);
  EXPECT_EQ(p.cost().predicted_us, p.cost().predicted_unshared_us);
}

TEST(Plan, batch_invariant_cuts_at_fixed_positions_and_shares_whole_cuts) {
  OwnedBatch batch = shared_prefix(8, 10, 30);  // 160 common tokens of 640
  PlanOptions options;
  options.sharing = Sharing::kAll;
  options.batch_invariant = true;
  options.cut_tokens = 64;
  const Plan p = plan(discover(batch.view()), spec_of(8, 2), plain_profile(), options);
  EXPECT_EQ(reasons(p), std::vector{Reason::kShared});
  EXPECT_EQ(plan_problem(batch.view(), spec_of(8, 2), p), "");
  for (const WorkItem& item : p.items()) {
    EXPECT_EQ(item.token_begin % 64, 0);
    EXPECT_EQ(item.token_end - item.token_begin, 64);
    const bool of_one_sequence = item.packed_end - item.packed_begin <= 4;
    EXPECT_TRUE(of_one_sequence || item.token_end <= 128);
  }
  options.cut_tokens = 256;
  const Plan coarse = plan(discover(batch.view()), spec_of(8, 2), plain_profile(), options);
  EXPECT_EQ(reasons(coarse), std::vector{Reason::kNotWholeCut});
}

TEST(Plan, survives_a_move_of_its_bytes) {
  OwnedBatch batch = shared_prefix(8, 16, 4);
  const Plan p = plan(discover(batch.view()), spec_of(8, 2), plain_profile());
  const std::vector<std::byte> copy(p.bytes().begin(), p.bytes().end());
  const Plan moved = Plan::from_bytes(copy);
  EXPECT_EQ(explain(moved), explain(p));
  EXPECT_TRUE(std::ranges::equal(moved.bytes(), p.bytes()));
}

TEST(Plan, spoiled_bytes_are_refused) {
  OwnedBatch batch = shared_prefix(8, 16, 4);
  const Plan p = plan(discover(batch.view()), spec_of(8, 2), plain_profile());
  const std::vector<std::byte> good(p.bytes().begin(), p.bytes().end());
  const auto refused = [&](const std::function<void(PlanHeader&)>& spoil) {
    std::vector<std::byte> bytes = good;
    PlanHeader header;
    std::memcpy(&header, bytes.data(), sizeof(header));
    spoil(header);
    std::memcpy(bytes.data(), &header, sizeof(header));
    EXPECT_THROW(Plan::from_bytes(bytes), Error);
  };
  refused([](PlanHeader& h) { h.magic = 7; });
  refused([](PlanHeader& h) { h.version += 1; });
  refused([](PlanHeader& h) { h.total_bytes += 64; });
  refused([](PlanHeader& h) { h.items = std::numeric_limits<int32_t>::max(); });
  refused([](PlanHeader& h) { h.rows_offset = -64; });
  refused([](PlanHeader& h) { h.sources_offset = std::numeric_limits<int64_t>::max() - 7; });
  refused([](PlanHeader& h) { h.kv_heads = 0; });
  refused([](PlanHeader& h) { h.partial_slots = 1; });
  refused([](PlanHeader& h) { h.page_table_len = 1; });
  refused([](PlanHeader& h) { h.dtype = static_cast<DType>(4); });
  refused([](PlanHeader& h) { h.dtype = DType::kE4M3; });
  refused([](PlanHeader& h) { h.kv_dtype = DType::kF16; });
  refused([](PlanHeader& h) { h.device.fill('x'); });
  refused([](PlanHeader& h) { h.cost.kv_bytes = -1; });
  refused([](PlanHeader& h) {  // a schedule too short for its header
    h.schedule_offset = h.total_bytes - 64;
    h.schedule_bytes = 64;
  });
  refused([](PlanHeader& h) { h.soft_cap = std::numeric_limits<float>::quiet_NaN(); });
  // Where products of sizes would overflow.
  refused([](PlanHeader& h) {
    h.workers = 1 << 20;
    h.scratch_bytes = int64_t{1} << 44;
  });
  refused([](PlanHeader& h) { h.partials_bytes = std::numeric_limits<int64_t>::max() - 63; });
  for (const int64_t offset : {int64_t{-1}, std::numeric_limits<int64_t>::max()}) {
    std::vector<std::byte> bytes = good;
    auto* const items = reinterpret_cast<WorkItem*>(bytes.data() + p.header().items_offset);
    items->page_offset = offset;
    EXPECT_THROW(Plan::from_bytes(bytes), Error) << offset;
  }
  for (size_t length : {size_t{0}, sizeof(PlanHeader) - 1, good.size() - 64}) {
    EXPECT_THROW(Plan::from_bytes(std::span(good).first(length)), Error);
  }
}

// --- refusals -------------------------------------------------------------------------------

struct Misuse {
  const char* name;
  void (*spoil)(AttentionSpec& spec, PlanOptions& options);
  ErrorCode code;
  const char* message;
};

class PlanMisuse : public ::testing::TestWithParam<Misuse> {};

TEST_P(PlanMisuse, names_the_argument) {
  OwnedBatch batch = shared_prefix(2, 4, 4);
  AttentionSpec spec = spec_of(8, 2);
  PlanOptions options;
  GetParam().spoil(spec, options);
  const Forest forest = discover(batch.view());
  try {
    plan(forest, spec, plain_profile(), options);
    FAIL() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code, GetParam().code);
    EXPECT_NE(error.message.find(GetParam().message), std::string::npos) << error.message;
  }
}

constexpr VisibleRange kThreeRanges[3] = {};
constexpr VisibleRange kTwoRanges[2] = {};

INSTANTIATE_TEST_SUITE_P(
    , PlanMisuse,
    ::testing::Values(
        Misuse{"kv_heads_zero", [](auto& s, auto&) { s.kv_heads = 0; }, ErrorCode::kInvalidArgument,
               "kv_heads: got 0"},
        Misuse{"q_heads_not_a_multiple", [](auto& s, auto&) { s.q_heads = 7; },
               ErrorCode::kInvalidArgument, "q_heads: got 7, want a positive multiple"},
        Misuse{"q_heads_zero", [](auto& s, auto&) { s.q_heads = 0; }, ErrorCode::kInvalidArgument,
               "q_heads: got 0"},
        Misuse{"q_heads_beyond_any_model", [](auto& s, auto&) { s.q_heads = 65538; },
               ErrorCode::kUnsupported, "q_heads: got 65538, supported are up to 65536"},
        Misuse{"head_dim_zero", [](auto& s, auto&) { s.head_dim = 0; }, ErrorCode::kInvalidArgument,
               "head_dim: got 0"},
        Misuse{"head_dim_odd", [](auto& s, auto&) { s.head_dim = 100; }, ErrorCode::kUnsupported,
               "head_dim: got 100, the CPU backend supports multiples of 8 up to 256"},
        Misuse{"head_dim_large", [](auto& s, auto&) { s.head_dim = 264; }, ErrorCode::kUnsupported,
               "head_dim: got 264"},
        Misuse{"dtype_unknown", [](auto& s, auto&) { s.dtype = static_cast<DType>(9); },
               ErrorCode::kInvalidArgument, "dtype: got code 9"},
        Misuse{"scale_nan",
               [](auto& s, auto&) { s.scale = std::numeric_limits<float>::quiet_NaN(); },
               ErrorCode::kInvalidArgument, "scale: got nan"},
        Misuse{"scale_subnormal", [](auto& s, auto&) { s.scale = 1e-40f; },
               ErrorCode::kInvalidArgument, "scale: got 1e-40, want 0 or a finite number"},
        Misuse{"window_negative", [](auto& s, auto&) { s.window = -1; },
               ErrorCode::kInvalidArgument, "window: got -1"},
        Misuse{"visible_too_long", [](auto& s, auto&) { s.visible = kThreeRanges; },
               ErrorCode::kInvalidArgument, "visible: got 3 ranges, want one for each of the 2"},
        Misuse{"visible_beside_window",
               [](auto& s, auto&) {
                 s.visible = kTwoRanges;
                 s.window = 4;
               },
               ErrorCode::kInvalidArgument, "window: got 4 beside visible"},
        Misuse{"sharing_unknown", [](auto&, auto& o) { o.sharing = static_cast<Sharing>(5); },
               ErrorCode::kInvalidArgument, "sharing: got code 5"},
        Misuse{"cut_not_whole_tiles",
               [](auto&, auto& o) {
                 o.batch_invariant = true;
                 o.cut_tokens = 24;
               },
               ErrorCode::kInvalidArgument, "cut_tokens: got 24"},
        Misuse{"cut_zero",
               [](auto&, auto& o) {
                 o.batch_invariant = true;
                 o.cut_tokens = 0;
               },
               ErrorCode::kInvalidArgument, "cut_tokens: got 0"}),
    [](const auto& info) { return info.param.name; });

TEST(PlanRefusal, h100_profile_lists_what_it_supports) {
  OwnedBatch batch = shared_prefix(2, 4, 4);
  const Forest forest = discover(batch.view());
  EXPECT_NO_THROW(plan(forest, spec_of(8, 2), h100_profile()));
  const auto refusal = [](const Forest& of, const AttentionSpec& spec) {
    return testing::message_of(ErrorCode::kUnsupported, [&] { plan(of, spec, h100_profile()); });
  };
  EXPECT_NE(refusal(forest, spec_of(8, 2, 72)).find("got 72 x bf16, the CUDA backend supports 128"),
            std::string::npos);
  AttentionSpec fp32 = spec_of(8, 2);
  fp32.dtype = DType::kF32;
  EXPECT_NE(refusal(forest, fp32).find("got 128 x fp32"), std::string::npos);
}

TEST(PlanRefusal, refused_plan_leaves_the_old_one) {
  OwnedBatch batch = shared_prefix(2, 4, 4);
  const Forest forest = discover(batch.view());
  Planner planner(plain_profile());
  Plan p;
  planner.plan(forest, spec_of(8, 2), {}, p);
  const std::string before = explain(p);
  EXPECT_THROW(planner.plan(forest, spec_of(7, 2), {}, p), Error);
  EXPECT_EQ(explain(p), before);
}

// --- properties -----------------------------------------------------------------------------

struct RandomCase {
  OwnedBatch batch;
  AttentionSpec spec;
  std::vector<VisibleRange> visible;
  std::vector<uint64_t> tree_mask;
  PlanOptions options;
  DeviceProfile profile;
};

/// Random forests with few distinct page ids, so that sharing is frequent.
RandomCase random_case(bool for_h100) {
  RandomCase c;
  c.batch.page_tokens = for_h100 ? *rc::gen::elementOf(std::vector<int32_t>(kCudaPageTokens.begin(),
                                                                            kCudaPageTokens.end()))
                                 : 1 << *rc::gen::inRange(0, 5);
  const int sequences = *rc::gen::inRange(0, 14);
  const int ids = *rc::gen::inRange(1, 4);
  int32_t q_rows = 0;
  for (int b = 0; b < sequences; ++b) {
    const int length = *rc::gen::inRange(0, 40);
    std::vector<int32_t> pages(length);
    for (int p = 0; p < length; ++p)
      pages[p] = *rc::gen::inRange(0, 5) != 0 ? p : *rc::gen::inRange(0, ids);
    c.batch.kv_len.push_back(*rc::gen::inRange(0, length * c.batch.page_tokens + 1));
    c.batch.q_len.push_back(*rc::gen::element(0, 1, 1, 1, 2, 5, 40));
    q_rows += c.batch.q_len.back();
    c.batch.pages.push_back(std::move(pages));
  }
  const int32_t kv_heads = *rc::gen::inRange(1, 4);
  c.spec =
      spec_of(kv_heads * *rc::gen::element(1, 3, 4, 7, 64), kv_heads, *rc::gen::element(64, 128));
  c.spec.causal = *rc::gen::arbitrary<bool>();
  c.spec.window = *rc::gen::element(0, 0, 1, 17, 200);
  if (*rc::gen::inRange(0, 4) == 0) {
    c.spec.window = 0;
    for (int32_t r = 0; r < q_rows; ++r) {
      c.visible.push_back({*rc::gen::inRange(-5, 400), *rc::gen::inRange(-5, 700)});
    }
    c.spec.visible = c.visible;
  } else if (!for_h100 && *rc::gen::inRange(0, 4) == 0) {
    c.spec.window = 0;
    for (const int32_t q_len : c.batch.q_len) {
      for (int32_t r = 0; r < q_len; ++r) {
        c.tree_mask.push_back(*rc::gen::arbitrary<uint64_t>() & ~uint64_t{0} >> (64 - q_len));
      }
    }
    c.spec.tree_mask = c.tree_mask;
  }
  c.options.sharing = *rc::gen::element(Sharing::kAuto, Sharing::kAll, Sharing::kNone);
  c.options.batch_invariant = *rc::gen::arbitrary<bool>();
  c.options.cut_tokens = *rc::gen::element(128, 256, 512);
  c.options.cut_tokens = std::max(c.options.cut_tokens, c.batch.page_tokens);
  c.profile = plain_profile(*rc::gen::inRange(1, 9));
  if (for_h100) {
    c.profile = h100_profile();
    c.profile.workers = *rc::gen::element(1, 2, 7, 78, 132, 132);
    const CudaShape shape = kCudaShapes[*rc::gen::inRange<size_t>(0, kCudaShapes.size())];
    c.spec.dtype = shape.dtype;
    c.spec.head_dim = shape.head_dim;
  }
  return c;
}

RC_GTEST_PROP(PlanProperty, every_row_sees_every_visible_position_once, ()) {
  RandomCase c = random_case(*rc::gen::arbitrary<bool>());
  const BatchView view = c.batch.view();
  const Plan p = plan(discover(view), c.spec, c.profile, c.options);
  const std::string problem = plan_problem(view, c.spec, p);
  RC_ASSERT(problem == "");
}

RC_GTEST_PROP(PlanProperty, same_inputs_give_the_same_bytes, ()) {
  RandomCase c = random_case(*rc::gen::arbitrary<bool>());
  const Forest forest = discover(c.batch.view());
  Planner planner(c.profile);
  Plan used;  // a planner and a plan that were used for something else before
  OwnedBatch other = shared_prefix(5, 3, 2);
  planner.plan(discover(other.view()), spec_of(8, 2), {}, used);
  planner.plan(forest, c.spec, c.options, used);
  const Plan fresh = plan(forest, c.spec, c.profile, c.options);
  RC_ASSERT(std::ranges::equal(used.bytes(), fresh.bytes()));
}

RC_GTEST_PROP(PlanProperty, auto_is_never_predicted_slower_than_no_sharing, ()) {
  RandomCase c = random_case(*rc::gen::arbitrary<bool>());
  c.options.sharing = Sharing::kAuto;
  const Plan p = plan(discover(c.batch.view()), c.spec, c.profile, c.options);
  RC_ASSERT(p.cost().predicted_us <= p.cost().predicted_unshared_us);
}

/// The positions at which a row's tokens are cut, and how its partials are merged.
std::vector<std::pair<int32_t, int32_t>> cuts_of(const Plan& p, int32_t q_row) {
  std::vector<std::pair<int32_t, int32_t>> cuts;
  for (const WorkItem& item : p.items()) {
    for (int32_t packed = item.packed_begin; packed < item.packed_end; ++packed) {
      const PlanRow& row = p.rows()[packed / p.group()];
      if (row.q_row != q_row || packed % p.group() != 0) continue;
      const int32_t begin = std::max(item.token_begin, row.visible_begin);
      const int32_t end = std::min(item.token_end, row.visible_end);
      if (begin < end) cuts.emplace_back(begin, end);
    }
  }
  std::ranges::sort(cuts);
  return cuts;
}

RC_GTEST_PROP(PlanProperty, batch_invariant_cuts_do_not_depend_on_the_batch, ()) {
  RandomCase c = random_case(false);
  c.options.batch_invariant = true;
  c.spec.visible = {};
  c.spec.tree_mask = {};
  const Plan together = plan(discover(c.batch.view()), c.spec, c.profile, c.options);
  int32_t first = 0;
  for (size_t b = 0; b < c.batch.pages.size(); ++b) {
    OwnedBatch alone;
    alone.page_tokens = c.batch.page_tokens;
    alone.pages = {c.batch.pages[b]};
    alone.kv_len = {c.batch.kv_len[b]};
    alone.q_len = {c.batch.q_len[b]};
    const Plan p = plan(discover(alone.view()), c.spec, c.profile, c.options);
    for (int32_t r = 0; r < c.batch.q_len[b]; ++r) {
      RC_ASSERT(cuts_of(together, first + r) == cuts_of(p, r));
    }
    first += c.batch.q_len[b];
  }
  for (const WorkItem& item : together.items()) {
    RC_ASSERT(item.token_begin % c.profile.kv_tile == 0);
    RC_ASSERT(item.token_begin / c.options.cut_tokens ==
              (item.token_end - 1) / c.options.cut_tokens);
  }
}

}  // namespace
}  // namespace pando
