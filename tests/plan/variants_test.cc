// Plans of attention's variants: what is refused, and what a plan says of the rest.
#include "plan/variants.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <fstream>
#include <functional>
#include <iterator>
#include <limits>
#include <numeric>
#include <vector>

#include "forest/batch_literal.h"
#include "pando/cpu.h"
#include "pando/plan.h"
#include "plan/coverage.h"
#include "support/message_of.h"

namespace pando::testing {
namespace {

/// Two sequences of two pages each, with three query rows: one and two.
OwnedBatch small_batch() {
  OwnedBatch batch;
  batch.page_tokens = 4;
  batch.pages = {{0, 1}, {0, 2}};
  batch.kv_len = {7, 8};
  batch.q_len = {1, 2};
  return batch;
}

AttentionSpec small_spec() {
  AttentionSpec spec;
  spec.q_heads = 4;
  spec.kv_heads = 2;
  spec.head_dim = 64;
  return spec;
}

std::string refusal(ErrorCode code, const AttentionSpec& spec,
                    const DeviceProfile& profile = cpu_profile(1)) {
  OwnedBatch batch = small_batch();
  const Forest forest = discover(batch.view());
  return message_of(code, [&] { plan(forest, spec, profile); });
}

TEST(Variants, the_table_of_the_docs_is_that_of_the_code) {
  std::ifstream file(PANDO_DOCS "/variants.md");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  EXPECT_NE(text.find(variants_table()), std::string::npos) << variants_table();
}

TEST(Variants, fp8_at_256_is_refused_for_cuda) {
  OwnedBatch batch = small_batch();
  batch.page_tokens = 1;
  batch.pages = {{0, 1, 2}, {0, 3}};
  batch.kv_len = {3, 2};
  const Forest forest = discover(batch.view());
  AttentionSpec spec = small_spec();
  spec.kv_dtype = DType::kE4M3;
  for (const int32_t head_dim : {64, 128}) {
    spec.head_dim = head_dim;
    EXPECT_EQ(plan(forest, spec, h100_profile()).header().kv_dtype, DType::kE4M3);
  }
  spec.head_dim = 256;
  EXPECT_EQ(message_of(ErrorCode::kUnsupported, [&] { plan(forest, spec, h100_profile()); }),
            "head_dim: got 256 with fp8 KV, of which the CUDA backend supports 64, 128");
  spec.head_dim = 64;
  EXPECT_EQ(plan(forest, spec, cpu_profile(1)).header().kv_dtype, DType::kE4M3);
}

TEST(Variants, soft_caps_that_are_no_positive_number_are_refused) {
  using Limits = std::numeric_limits<float>;
  AttentionSpec spec = small_spec();
  for (const float cap : {-1.0f, -0.1f, Limits::quiet_NaN(), Limits::infinity(), 1e-42f}) {
    spec.soft_cap = cap;
    EXPECT_EQ(refusal(ErrorCode::kInvalidArgument, spec),
              fmt::format("soft_cap: got {}, want 0 (no cap) or a positive number that the scale "
                          "can be divided by",
                          cap));
  }
  spec.scale = 1e-20f;  // which 1e-40 would divide
  spec.soft_cap = 1e-40f;
  EXPECT_NE(refusal(ErrorCode::kInvalidArgument, spec).find("soft_cap: got"), std::string::npos);
}

/// Eight sequences behind a prefix of 64 pages of 16 tokens, with 100, 200, ... own tokens.
OwnedBatch uneven_batch() {
  OwnedBatch batch;
  batch.page_tokens = 16;
  for (int32_t b = 0; b < 8; ++b) {
    std::vector<int32_t> pages(64);
    std::iota(pages.begin(), pages.end(), 0);
    const int32_t own = (b + 1) * 100;
    for (int32_t p = 0; p * 16 < own; ++p) pages.push_back(1000 * (b + 1) + p);
    batch.kv_len.push_back(64 * 16 + own);
    batch.pages.push_back(std::move(pages));
  }
  return batch;
}

TEST(Variants, tree_masks_must_fit_the_rows) {
  constexpr auto kInvalid = ErrorCode::kInvalidArgument;
  AttentionSpec spec = small_spec();
  const std::vector<uint64_t> masks{1, 1, 3, 0};
  spec.tree_mask = masks;
  EXPECT_EQ(refusal(kInvalid, spec),
            "tree_mask: got 4 masks, want one for each of the 3 query rows");
  const std::vector<uint64_t> beyond{1, 1, 4};
  spec.tree_mask = beyond;
  EXPECT_EQ(refusal(kInvalid, spec),
            "tree_mask[2]: got bit 2, want bits below 2, the query rows of sequence 1");
}

TEST(Variants, tree_masks_stand_alone) {
  constexpr auto kInvalid = ErrorCode::kInvalidArgument;
  AttentionSpec spec = small_spec();
  const std::vector<uint64_t> masks{1, 1, 3};
  const std::vector<VisibleRange> ranges(3);
  spec.tree_mask = masks;
  spec.window = 4;
  EXPECT_EQ(refusal(kInvalid, spec), "window: got 4 beside tree_mask, want 0");
  spec.window = 0;
  spec.visible = ranges;
  EXPECT_EQ(refusal(kInvalid, spec), "visible: got ranges beside tree_mask, want one of the two");
}

TEST(Variants, trees_of_more_than_64_rows_are_refused_by_sequence) {
  OwnedBatch batch = small_batch();
  batch.q_len = {1, 65};
  const std::vector<uint64_t> masks(66, 1);
  AttentionSpec spec = small_spec();
  spec.tree_mask = masks;
  const Forest forest = discover(batch.view());
  EXPECT_EQ(message_of(ErrorCode::kUnsupported, [&] { plan(forest, spec, cpu_profile(1)); }),
            "tree_mask: got 65 query rows of sequence 1, supported are up to 64");
}

TEST(Variants, what_the_table_does_not_have_is_refused_with_what_it_has) {
  EXPECT_EQ(message_of(ErrorCode::kUnsupported,
                       [] { check_variant(static_cast<Variant>(99), Backend::kCuda); }),
            "variant: not supported by the CUDA backend, which supports causal, window, visible, "
            "tree_mask, soft_cap, sinks, kv_dtype=fp8");
}

TEST(Windows, a_prefix_is_shared_by_those_who_still_see_it) {
  OwnedBatch batch = uneven_batch();
  const Forest forest = discover(batch.view());
  struct Expected {
    int32_t window, seen_by;
    Reason reason;
  };
  for (const auto& [window, seen_by, reason] :
       {Expected{0, 8, Reason::kShared}, Expected{5000, 8, Reason::kShared},
        Expected{501, 5, Reason::kShared}, Expected{201, 2, Reason::kShared},
        Expected{101, 1, Reason::kOneReader}, Expected{100, 0, Reason::kInvisible}}) {
    AttentionSpec spec = small_spec();
    spec.window = window;
    const Plan p = plan(forest, spec, cpu_profile(1), {.sharing = Sharing::kAll});
    ASSERT_EQ(p.decisions().size(), 1);
    EXPECT_EQ(p.decisions()[0].seen_by, seen_by) << window;
    EXPECT_EQ(p.decisions()[0].reason, reason) << window;
    EXPECT_EQ(plan_problem(batch.view(), spec, p), "");
    const std::string said = explain(p);
    EXPECT_EQ(said.find(fmt::format("x 8 sequences, seen by {}: ", seen_by)) != std::string::npos,
              seen_by < 8)
        << said;
  }
}

TEST(Windows, rows_that_see_nothing_after_a_prefix_share_it) {
  OwnedBatch batch = uneven_batch();
  const Forest forest = discover(batch.view());
  AttentionSpec spec = small_spec();
  const auto planned = [&](VisibleRange range) {
    const std::vector<VisibleRange> visible(8, range);
    spec.visible = visible;
    const Plan p = plan(forest, spec, cpu_profile(1));
    EXPECT_EQ(plan_problem(batch.view(), spec, p), "");
    return p.decisions()[0];
  };
  // That they do not see its first token either takes little away.
  const Decision from_first = planned({0, 1000}), from_second = planned({1, 1000});
  EXPECT_EQ(from_first.reason, Reason::kShared);
  EXPECT_EQ(from_second.reason, Reason::kShared);
  EXPECT_EQ(from_second.seen_by, 8);
  EXPECT_NEAR(from_second.saves_us, from_first.saves_us, 0.01 * from_first.saves_us);
}

TEST(Windows, what_a_sequence_does_not_see_saves_nothing) {
  OwnedBatch batch = uneven_batch();
  const Forest forest = discover(batch.view());
  AttentionSpec spec = small_spec();
  const auto saves = [&](int32_t window) {
    spec.window = window;
    return plan(forest, spec, cpu_profile(1)).decisions()[0].saves_us;
  };
  // All see all of it; all but the longest see one token or more; two see up to 101 tokens.
  EXPECT_GT(saves(0), saves(750));
  EXPECT_GT(saves(750), saves(201));
  EXPECT_EQ(saves(101), 0);
}

TEST(Variants, a_plan_says_what_it_was_made_for) {
  OwnedBatch batch = small_batch();
  AttentionSpec spec = small_spec();
  spec.soft_cap = 30;
  const std::vector<uint64_t> masks{1, 1, 2};
  spec.tree_mask = masks;
  const Plan p = plan(discover(batch.view()), spec, cpu_profile(1));
  EXPECT_EQ(p.header().soft_cap, 30);
  EXPECT_EQ(p.header().tree_rows, 1);
  EXPECT_NE(explain(p).find("scores capped to +-30"), std::string::npos) << explain(p);
  EXPECT_NE(explain(p).find("1 query rows see some"), std::string::npos) << explain(p);
  EXPECT_NE(to_json(p).find("\"soft_cap\":30.0,\"tree_rows\":1"), std::string::npos) << to_json(p);
  // The row with bit 1 alone sees 6 positions and the last one.
  EXPECT_EQ(p.cost().flops, (7 + 7 + 7) * 4 * 4 * 64);
  EXPECT_EQ(plan_problem(batch.view(), spec, p), "");
}

/// Sequences on one prefix, which have `q_len` rows each; any bits in their masks.
TEST(Variants, schedules_leave_out_what_no_row_of_a_list_sees) {
  uint64_t bits = 0x9e3779b97f4a7c15;
  for (const int32_t q_len : {2, 8, 31, 64}) {
    OwnedBatch batch = uneven_batch();
    std::vector<uint64_t> masks;
    for (int32_t b = 0; b < 8; ++b) {
      batch.q_len.push_back(b % 2 == 0 ? q_len : 1);
      for (int32_t r = 0; r < batch.q_len.back(); ++r) {
        bits ^= bits << 13, bits ^= bits >> 7, bits ^= bits << 17;
        const uint64_t sparse = r % 3 == 0 ? bits & bits >> 9 & bits << 7 : bits & bits >> 21;
        masks.push_back(sparse >> (64 - batch.q_len.back()));
      }
    }
    const Forest forest = discover(batch.view());
    AttentionSpec spec = small_spec();
    spec.tree_mask = masks;
    for (const Sharing sharing : {Sharing::kNone, Sharing::kAll}) {
      for (const bool invariant : {false, true}) {
        const Plan p =
            plan(forest, spec, h100_profile(), {.sharing = sharing, .batch_invariant = invariant});
        EXPECT_EQ(plan_problem(batch.view(), spec, p), "") << q_len;
      }
    }
  }
}

TEST(Variants, a_chain_has_the_schedule_of_a_causal_mask) {
  OwnedBatch batch = small_batch();
  const Forest forest = discover(batch.view());
  AttentionSpec spec = small_spec();
  const Plan causal = plan(forest, spec, h100_profile());
  const std::vector<uint64_t> masks{1, 1, 3};
  spec.tree_mask = masks;
  EXPECT_TRUE(std::ranges::equal(plan(forest, spec, h100_profile()).schedule(), causal.schedule()));
}

TEST(Variants, bytes_with_holes_that_cannot_be_are_no_plan) {
  OwnedBatch batch = small_batch();
  AttentionSpec spec = small_spec();
  const std::vector<uint64_t> masks{1, 1, 2};
  spec.tree_mask = masks;
  const Plan p = plan(discover(batch.view()), spec, cpu_profile(1));
  EXPECT_NO_THROW(Plan::from_bytes(p.bytes()));
  const auto refused = [&](const std::function<void(PlanHeader&, PlanRow&)>& spoil) {
    std::vector<std::byte> bytes(p.bytes().begin(), p.bytes().end());
    PlanHeader header;
    std::memcpy(&header, bytes.data(), sizeof(header));
    PlanRow row;
    std::byte* const at = bytes.data() + header.rows_offset + 2 * sizeof(PlanRow);
    std::memcpy(&row, at, sizeof(row));
    spoil(header, row);
    std::memcpy(bytes.data(), &header, sizeof(header));
    std::memcpy(at, &row, sizeof(row));
    message_of(ErrorCode::kInvalidArgument, [&] { Plan::from_bytes(bytes); });
  };
  refused([](auto&, PlanRow& row) { row.tree_begin = -1; });
  refused([](auto&, PlanRow& row) { row.tree_begin = row.visible_end + 1; });
  refused([](auto&, PlanRow& row) { row.visible_end = row.tree_begin + 65; });
  refused([](PlanHeader& h, auto&) { h.tree_rows = 0; });
  refused([](PlanHeader& h, auto&) { h.soft_cap = -1; });
}

}  // namespace
}  // namespace pando::testing
