// Profiles: what is refused, and their JSON form.
#include "pando/profile.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>

#include "pando/plan.h"
#include "support/message_of.h"

namespace pando {
namespace {

using Json = nlohmann::ordered_json;
using testing::message_of;

const ProfileOrigin kOrigin{.device = "a card",
                            .driver = "13.0",
                            .clock_mhz = 1980.5,
                            .date = "2026-11-25T07:00:00Z",
                            .version = "0.1.0",
                            .commit = "abc"};

/// Numbers whose decimal form is long.
DeviceProfile odd(DeviceProfile p) {
  p.launch_us = 0.1 + 0.2;
  p.dram_bytes_per_us = 1e7 / 3;
  p.cache_bytes = std::numeric_limits<int64_t>::max();
  p.rates[1].softmax_ns = std::nextafter(0.05, 1);
  if (p.backend == Backend::kCuda) p.schedule.turn_us = 1e-300;
  return p;
}

void expect_same(const DeviceProfile& a, const DeviceProfile& b) {
  EXPECT_EQ(a.name, b.name);
  EXPECT_EQ(a.backend, b.backend);
  EXPECT_EQ(a.workers, b.workers);
  EXPECT_EQ(a.cache_bytes, b.cache_bytes);
  EXPECT_EQ(a.launch_us, b.launch_us);
  EXPECT_EQ(a.dram_bytes_per_us, b.dram_bytes_per_us);
  EXPECT_EQ(std::memcmp(a.rates.data(), b.rates.data(), sizeof(a.rates)), 0);
  EXPECT_EQ(std::memcmp(&a.schedule, &b.schedule, sizeof(a.schedule)), 0);
}

/// What profile_from_json says of the H100's profile with `change` made to it.
std::string said_of(const std::function<void(Json&)>& change) {
  Json json = Json::parse(profile_to_json(h100_profile(), kOrigin));
  change(json);
  return message_of(ErrorCode::kInvalidArgument, [&] { profile_from_json(json.dump()); });
}

TEST(Profile, is_the_same_bits_after_a_round_trip) {
  for (const DeviceProfile& before :
       {h100_profile(), odd(h100_profile()), cpu_profile(3), odd(cpu_profile(1))}) {
    ProfileOrigin origin;
    const std::string text = profile_to_json(before, kOrigin);
    const DeviceProfile after = profile_from_json(text, &origin);
    expect_same(before, after);
    EXPECT_EQ(profile_to_json(after, origin), text);
    EXPECT_EQ(origin.clock_mhz, kOrigin.clock_mhz);
    EXPECT_EQ(origin.commit, "abc");
  }
}

TEST(Profile, json_has_the_names_of_the_fields) {
  const Json json = Json::parse(profile_to_json(h100_profile(), kOrigin));
  EXPECT_EQ(json["backend"], "cuda");
  EXPECT_EQ(json["launch_us"], 5.0);
  EXPECT_EQ(json["rates"]["bf16"]["row_granule"], 64);
  EXPECT_EQ(json["schedule"]["whole_tile_us"], 1.7);
  EXPECT_EQ(json["schedule"]["run_us"], 0.3);
  EXPECT_EQ(json["origin"]["driver"], "13.0");
  EXPECT_FALSE(Json::parse(profile_to_json(cpu_profile(1))).contains("schedule"));
}

TEST(Profile, that_is_incomplete_or_wrong_is_refused_by_key) {
  EXPECT_EQ(said_of([](Json& j) { j.erase("launch_us"); }), "profile.launch_us: missing");
  EXPECT_EQ(said_of([](Json& j) { j["schedule"].erase("turn_us"); }),
            "profile.schedule.turn_us: missing");
  EXPECT_EQ(said_of([](Json& j) { j["item_us"] = -1.5; }),
            "profile.item_us: got -1.5, want 0 or more");
  EXPECT_EQ(said_of([](Json& j) { j["item_us"] = NAN; }),
            "profile.item_us: got null, want a finite number");
  EXPECT_EQ(said_of([](Json& j) { j["rates"]["fp16"]["wide_ns"] = "fast"; }),
            "profile.rates.fp16.wide_ns: got \"fast\", want a finite number");
  EXPECT_EQ(said_of([](Json& j) { j["workers"] = 1.5; }),
            "profile.workers: got 1.5, want a whole number in [0, 2147483647]");
  EXPECT_EQ(said_of([](Json& j) { j["workers"] = int64_t{1} << 31; }),
            "profile.workers: got 2147483648, want a whole number in [0, 2147483647]");
  EXPECT_EQ(said_of([](Json& j) { j["workers"] = 0; }),
            "profile.workers: got 0, want a number in [1, 65536]");
  EXPECT_EQ(said_of([](Json& j) { j["workers"] = 2147483647; }),
            "profile.workers: got 2147483647, want a number in [1, 65536]");
  EXPECT_EQ(said_of([](Json& j) { j["row_tile"] = 65537; }),
            "profile.row_tile: got 65537, want a number in [1, 65536]");
  EXPECT_EQ(said_of([](Json& j) { j["backend"] = "tpu"; }),
            "profile.backend: got \"tpu\", want cpu or cuda");
  // A CPU has no schedule.
  EXPECT_NE(said_of([](Json& j) { j["backend"] = "cpu"; }).find("profile.schedule: unknown key"),
            std::string::npos);
  EXPECT_NE(said_of([](Json& j) {
              j["schedule"]["warp_us"] = 1;
            }).find("profile.schedule.warp_us: unknown key, want only whole_tile_us"),
            std::string::npos);
  EXPECT_EQ(said_of([](Json& j) { j["format"] = 2; }), "profile.format: got 2, want 1");
  EXPECT_EQ(said_of([](Json& j) { j["rates"] = 5; }), "profile.rates: got 5, want an object");
  EXPECT_EQ(said_of([](Json& j) { j["name"] = std::string(64, 'x'); }),
            "profile.name: got 64 bytes, want up to 63, none of them 0");
  EXPECT_EQ(said_of([](Json& j) { j["schedule"]["whole_tile_us"] = 0; }),
            "profile.schedule.whole_tile_us: got 0, want more than 0");
  EXPECT_EQ(said_of([](Json& j) { j["schedule"]["run_us"] = 1e7; }),
            "profile.schedule.run_us: got 10000000, want a number in [0, 1000000]");
  EXPECT_EQ(said_of([](Json& j) { j["launch_us"] = Json::array({1}); }),
            "profile.launch_us: got an array, want a finite number");
  const std::string deep = std::string(1 << 20, '[') + std::string(1 << 20, ']');
  EXPECT_EQ(message_of(ErrorCode::kInvalidArgument, [&] { profile_from_json(deep); }),
            "profile: got an array, want an object");
  for (const char* text : {"", "{", "[1]", "nonsense"}) {
    EXPECT_NE(
        message_of(ErrorCode::kInvalidArgument, [&] { profile_from_json(text); }).find("profile"),
        std::string::npos);
  }
}

TEST(Profile, of_a_cpu_has_at_most_as_many_workers_as_there_may_be_threads) {
  EXPECT_NO_THROW(profile_from_json(profile_to_json(cpu_profile(4096))));
  Json json = Json::parse(profile_to_json(cpu_profile(1)));
  for (const int32_t workers : {4097, 65536}) {
    json["workers"] = workers;
    EXPECT_EQ(message_of(ErrorCode::kInvalidArgument, [&] { profile_from_json(json.dump()); }),
              "profile.workers: got " + std::to_string(workers) + ", want a number in [1, 4096]");
  }
}

TEST(Profile, that_cannot_be_planned_for_is_not_written) {
  DeviceProfile p = h100_profile();
  p.schedule.merge_us = std::numeric_limits<double>::quiet_NaN();
  EXPECT_EQ(message_of(ErrorCode::kInvalidArgument, [&] { profile_to_json(p); }),
            "profile.schedule.merge_us: got nan, want a number in [0, 1000000]");
  EXPECT_EQ(message_of(ErrorCode::kInvalidArgument, [&] { Planner planner(p); }),
            "profile.schedule.merge_us: got nan, want a number in [0, 1000000]");
}

TEST(Profile, name_without_an_end_is_refused) {
  DeviceProfile p = h100_profile();
  p.name.fill('x');
  EXPECT_EQ(message_of(ErrorCode::kInvalidArgument, [&] { profile_to_json(p); }),
            "profile.name: got 64 bytes without a 0, want one at their end");
}

TEST(Profile, of_a_file_gives_the_plan_of_the_profile) {
  const std::vector<int32_t> q_indptr{0, 1, 2}, kv_len{300, 310}, page_indptr{0, 5, 10},
      page_ids{0, 1, 2, 3, 4, 0, 1, 2, 3, 5};
  const Forest forest = discover({q_indptr, kv_len, page_indptr, page_ids, 64});
  const AttentionSpec spec{.q_heads = 8, .kv_heads = 2, .head_dim = 128, .dtype = DType::kBF16};
  const DeviceProfile read = profile_from_json(profile_to_json(h100_profile()));
  const auto same = [](const Plan& a, const Plan& b) {
    return std::ranges::equal(a.bytes(), b.bytes());
  };
  EXPECT_TRUE(same(plan(forest, spec, h100_profile()), plan(forest, spec, read)));
  DeviceProfile other = read;
  other.schedule.unit_us *= 2;
  const double before = plan(forest, spec, read).cost().predicted_us;
  EXPECT_GT(plan(forest, spec, other).cost().predicted_us, before);
}

}  // namespace
}  // namespace pando
