// Plans of attention's variants: what is refused, and what a plan says of the rest.
#include "plan/variants.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <limits>
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

TEST(Variants, cuda_refuses_by_name_what_it_does_not_support) {
  const std::vector<uint64_t> masks{1, 1, 3};
  for (const VariantSupport& support : kVariants) {
    AttentionSpec spec = small_spec();
    if (support.variant == Variant::kSoftCap) spec.soft_cap = 50;
    if (support.variant == Variant::kTreeMask) spec.tree_mask = masks;
    if (support.cuda || (spec.soft_cap == 0 && spec.tree_mask.empty())) continue;
    EXPECT_EQ(refusal(ErrorCode::kUnsupported, spec, h100_profile()),
              fmt::format("{}: not supported by the CUDA backend, which supports {}", support.name,
                          variants_text(Backend::kCuda)));
  }
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
