// Calibration with a stopwatch that computes times from known constants: what comes out is what
// went in.
#include "calibrate/calibrate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>

#include "cli/synthetic_points.h"
#include "support/message_of.h"

namespace pando::calibrate {
namespace {

using pando::testing::message_of;

TEST(Probes, differ_in_one_constant_on_cards_of_any_size) {
  for (const int32_t multiprocessors : {16, 48, 60, 78, 96, 114, 119, 132, 144}) {
    const std::vector<Probe> all = probes(multiprocessors);
    for (const Constant constant : all_constants()) {
      std::vector<Counts> counts;
      for (const Probe& probe : all) {
        if (probe.constant != constant || !probe.is_plan()) continue;
        EXPECT_LE(probe.thread_blocks, multiprocessors);
        const cases::Case problem = case_of(probe);
        counts.push_back(
            counts_of(plan_of(probe, problem, h100_profile()), h100_profile().schedule));
      }
      const bool wanted = constant != Constant::kLaunch && constant < Constant::kMemory;
      for (size_t i = 1; wanted && i < counts.size(); ++i) {
        // Those fitted later must be the same; those fitted before are taken off the times.
        for (const Constant other : all_constants()) {
          if (other <= constant || is_rate(other)) continue;
          EXPECT_EQ(count_of(counts[0], other), count_of(counts[i], other))
              << name_of(constant) << " against " << name_of(other) << ", " << multiprocessors
              << " multiprocessors";
        }
      }
      if (wanted && !counts.empty()) {
        const auto [least, most] =
            std::ranges::minmax(counts, {}, [&](const Counts& c) { return count_of(c, constant); });
        EXPECT_LT(count_of(least, constant), count_of(most, constant))
            << name_of(constant) << ", " << multiprocessors;
      }
    }
  }
}

TEST(Probes, give_every_thread_block_the_same_work_and_wait_for_no_memory) {
  DeviceProfile card = h100_profile();
  card.dram_bytes_per_us = 1.8e6;  // the slowest memory of a Hopper card
  for (const int32_t multiprocessors : {48, 78, 114, 132}) {
    for (const Probe& probe : probes(multiprocessors)) {
      if (!probe.is_plan()) continue;
      const cases::Case problem = case_of(probe);
      const Plan plan = plan_of(probe, problem, card);
      EXPECT_NO_THROW(Plan::from_bytes(plan.bytes())) << probe.text();
      const Counts counts = counts_of(plan, card.schedule);
      const int32_t lists = std::max(1, probe.sequences * probe.group / 128);
      const int32_t list_tokens = probe.tokens * (probe.apart ? probe.sequences : 1);
      EXPECT_EQ(plan.header().workers, probe.thread_blocks);
      EXPECT_EQ(plan.header().units,
                probe.thread_blocks * static_cast<int32_t>(count_of(counts, Constant::kUnit)))
          << probe.text();
      EXPECT_EQ(probe.kv_heads * lists * (list_tokens / 128),
                probe.thread_blocks * (count_of(counts, Constant::kWholeTile) +
                                       count_of(counts, Constant::kSplitTile)))
          << probe.text();
      // The probes of merging read the same bytes, at whatever rate they come.
      const bool on_time = probe.constant == Constant::kWholeTile ||
                           probe.constant == Constant::kSplitTile ||
                           probe.constant == Constant::kRun || probe.constant == Constant::kUnit ||
                           probe.constant == Constant::kLaunch;
      double us = 0;
      for (const Constant c : all_constants()) {
        if (!is_rate(c)) us += count_of(counts, c) * field_of(card, c);
      }
      if (on_time) {
        EXPECT_NEAR(plan.cost().predicted_us, us, 1e-9 * us) << probe.text();
      }
    }
  }
}

TEST(Probes, hold_the_tiles_and_sources_that_they_are_made_for) {
  const auto count = [](Constant of, int32_t index, Constant what) {
    for (const Probe& probe : probes(132)) {
      if (probe.constant != of || index-- > 0) continue;
      const cases::Case problem = case_of(probe);
      return count_of(counts_of(plan_of(probe, problem, h100_profile()), h100_profile().schedule),
                      what);
    }
    return -1.0;
  };
  EXPECT_EQ(count(Constant::kWholeTile, 1, Constant::kWholeTile), 16);
  EXPECT_EQ(count(Constant::kWholeTile, 1, Constant::kSplitTile), 0);
  EXPECT_EQ(count(Constant::kSplitTile, 0, Constant::kSplitTile), 8);
  // Four split tiles whose halves hold 8 runs, 4 and 1; eight with 4 and 1.
  for (const auto& [index, runs, tiles] :
       {std::array{0, 28, 4}, {1, 12, 4}, {2, 0, 4}, {3, 24, 8}, {4, 0, 8}}) {
    EXPECT_EQ(count(Constant::kRun, index, Constant::kRun), runs);
    EXPECT_EQ(count(Constant::kRun, index, Constant::kSplitTile), tiles);
  }
  EXPECT_EQ(count(Constant::kUnit, 4, Constant::kUnit), 6);
  EXPECT_EQ(count(Constant::kMerge, 0, Constant::kMerge), 0);
  EXPECT_EQ(count(Constant::kMerge, 1, Constant::kMerge), 1);
  EXPECT_EQ(count(Constant::kTurn, 4, Constant::kTurn), 1);
  EXPECT_EQ(count(Constant::kTurn, 5, Constant::kTurn), 2);
  EXPECT_EQ(count(Constant::kLookup, 3, Constant::kLookup), 0);
  EXPECT_EQ(count(Constant::kLookup, 4, Constant::kLookup), 1);
}

TEST(Fit, finds_the_constants_that_the_times_were_made_from) {
  for (const int32_t multiprocessors : {114, 132}) {
    const Fit found = fit(points_of(secret(), multiprocessors), h100_profile());
    for (const Fitted& fitted : found) {
      const double want = field_of(secret(), fitted.constant);
      EXPECT_TRUE(fitted.measured) << name_of(fitted.constant);
      EXPECT_NEAR(fitted.value, want, 1e-6 * want) << name_of(fitted.constant);
      EXPECT_LT(fitted.spread, 1e-6 * want) << name_of(fitted.constant);
    }
  }
}

TEST(Fit, of_times_that_are_off_is_off_by_what_its_spread_says) {
  const Fit found = fit(points_of(secret(), 132, 0.01), h100_profile());
  for (const Fitted& fitted : found) {
    const double want = field_of(secret(), fitted.constant);
    EXPECT_GT(fitted.spread, 0) << name_of(fitted.constant);
    EXPECT_NEAR(fitted.value, want, std::max(0.02 * want, 5 * fitted.spread))
        << name_of(fitted.constant);
    EXPECT_LT(fitted.spread, 0.2 * want) << name_of(fitted.constant);
  }
}

TEST(Fit, keeps_what_a_small_card_cannot_tell) {
  const Fit found = fit(points_of(secret(), 16), h100_profile());
  for (const Constant constant : {Constant::kMerge, Constant::kTurn, Constant::kLookup}) {
    const Fitted& fitted = found[static_cast<size_t>(constant)];
    EXPECT_FALSE(fitted.measured);
    EXPECT_EQ(fitted.value, field_of(h100_profile(), constant));
  }
  EXPECT_TRUE(found[static_cast<size_t>(Constant::kWholeTile)].measured);
  EXPECT_TRUE(found[static_cast<size_t>(Constant::kRun)].measured);
  // 48 sources of a row need no lookup.
  const Fit middle = fit(points_of(secret(), 60), h100_profile());
  EXPECT_TRUE(middle[static_cast<size_t>(Constant::kTurn)].measured);
  EXPECT_FALSE(middle[static_cast<size_t>(Constant::kLookup)].measured);
}

TEST(Fit, takes_a_negative_time_as_none_and_refuses_a_negative_tile) {
  std::vector<Point> points = points_of(secret(), 132);
  for (Point& point : points) {
    if (point.constant == Constant::kTurn) {
      for (double& us : point.us) us = 100 - us;
    }
  }
  EXPECT_EQ(fit(points, h100_profile())[static_cast<size_t>(Constant::kTurn)].value, 0);
  for (Point& point : points) {
    if (point.constant == Constant::kWholeTile) {
      for (double& us : point.us) us = 1000 - us;
    }
  }
  const std::string said =
      message_of(ErrorCode::kInvalidArgument, [&] { fit(points, h100_profile()); });
  EXPECT_NE(said.find("schedule.whole_tile_us: got -1.55 us"), std::string::npos) << said;
}

TEST(Fit, becomes_a_profile_that_can_be_planned_for) {
  const Fit found = fit(points_of(secret(), 132), h100_profile());
  const DeviceProfile p = profile_of(found, h100_profile(), std::string(200, 'x'));
  EXPECT_EQ(std::string(p.name.data()), std::string(63, 'x'));
  EXPECT_NEAR(p.schedule.merge_us, 2.8, 1e-6);
  EXPECT_EQ(p.item_us, h100_profile().item_us);
  const Probe probe = probes(132)[0];
  const cases::Case problem = case_of(probe);
  const Plan plan = plan_of(probe, problem, p);
  EXPECT_NEAR(plan.cost().predicted_us, 7.25 + 1.9 + 8 * 1.55, 1e-6);
}

TEST(Record, is_read_back_as_it_was_written) {
  const Measured before{h100_profile(), origin_of("card"), points_of(secret(), 132, 0.01), {}};
  const Measured after = measured_from_json(to_json(before).dump());
  ASSERT_EQ(after.points.size(), before.points.size());
  for (size_t i = 0; i < after.points.size(); ++i) {
    EXPECT_EQ(after.points[i].constant, before.points[i].constant);
    EXPECT_EQ(after.points[i].counts, before.points[i].counts);
    EXPECT_EQ(after.points[i].us, before.points[i].us);
  }
  EXPECT_EQ(after.origin.device, "card");
  const Fit want = fit(before.points, before.base), got = fit(after.points, after.base);
  for (size_t i = 0; i < kConstants; ++i) EXPECT_EQ(got[i].value, want[i].value);
}

TEST(Record, that_is_none_is_refused) {
  const auto said = [](const nlohmann::ordered_json& json) {
    return message_of(ErrorCode::kInvalidArgument, [&] { measured_from_json(json.dump()); });
  };
  nlohmann::ordered_json json = to_json(Measured{h100_profile(), {}, points_of(secret(), 132), {}});
  EXPECT_NE(said(nlohmann::ordered_json::array()).find("without base"), std::string::npos);
  auto bad = json;
  bad["points"][3]["constant"] = "warp_us";
  EXPECT_NE(said(bad).find("got \"warp_us\""), std::string::npos);
  bad = json;
  bad["points"][3]["us"] = {1, -2};
  EXPECT_NE(said(bad).find("got -2 as a time"), std::string::npos);
  bad = json;
  bad["points"][3].erase("counts");
  EXPECT_NE(said(bad).find("without counts"), std::string::npos);
}

}  // namespace
}  // namespace pando::calibrate
