// pando calibrate, and --profile of the other commands.
#include <filesystem>
#include <nlohmann/json.hpp>

#include "cli/program.h"
#include "cli/synthetic_points.h"

namespace pando {
namespace {

class Calibrate : public Program {
 protected:
  std::string profile() const { return dir_ / "profile.json"; }
  /// A record of a card with the constants of calibrate::secret().
  std::string record() const {
    const calibrate::Measured measured{h100_profile(),
                                       calibrate::origin_of("a card"),
                                       calibrate::points_of(calibrate::secret(), 132),
                                       {}};
    std::ofstream(dir_ / "record.json") << calibrate::to_json(measured).dump();
    return dir_ / "record.json";
  }
};

TEST_F(Calibrate, on_the_cpu_writes_a_profile_that_commands_plan_for) {
  const nlohmann::json made =
      json("calibrate --backend cpu --threads 1 --json --shapes l3-8 --out " + profile());
  EXPECT_EQ(made["command"], "pando calibrate --backend cpu --threads 1 --json --shapes l3-8");
  EXPECT_EQ(made["shapes"].size(), 1u);
  EXPECT_GT(made["shapes"][0]["predicted_us"], 0);
  EXPECT_FALSE(made["shapes"][0].contains("run_us"));
  const DeviceProfile read = profile_from_json(text_of(profile()));
  EXPECT_EQ(read.workers, 1);
  EXPECT_EQ(nlohmann::json::parse(text_of(profile())), made["profile"]);

  const std::string use = " --profile " + profile();
  const nlohmann::json plan = json("plan --json " + make_case() + use);
  EXPECT_EQ(plan["device"], read.name.data());
  const nlohmann::json bench = json("bench --shapes l3-8 --scale 1/16 --reps 1 --json" + use);
  EXPECT_EQ(bench["profile"], read.name.data());
  const nlohmann::json planned = json("bench --plan-only --shapes l3-8 --reps 1 --json" + use);
  EXPECT_EQ(planned["planned_for"], read.name.data());
  const nlohmann::json verdict = json("verify --json --case " + file() + use);
  EXPECT_EQ(verdict["profile"], read.name.data());
  EXPECT_EQ(verdict["passed"], 1);
  const nlohmann::json info = json("info --json" + use);
  EXPECT_EQ(info["profile_from"], profile());
  EXPECT_EQ(info["profile"]["name"], read.name.data());
  EXPECT_EQ(json("info --json")["profile_from"], "stored for this device");
  EXPECT_NE(run("info" + use).out.find(profile()), std::string::npos);
}

TEST_F(Calibrate, check_times_what_is_predicted) {
  const nlohmann::json made =
      json("calibrate --backend cpu --threads 1 --json --check --shapes seed-4x4,tree-8x8");
  ASSERT_EQ(made["shapes"].size(), 2u);
  for (const nlohmann::json& shape : made["shapes"]) {
    EXPECT_EQ(shape["run_us"]["count"], 10);
    const double predicted_us = shape["predicted_us"];
    const double run_us = shape["run_us"]["median"];
    EXPECT_DOUBLE_EQ(shape["ratio"], predicted_us / run_us);
  }
  EXPECT_LE(made["share_within_20_pct"], 1);
  EXPECT_EQ(made["shapes"][1]["shape"], "tree-8x8");
}

TEST_F(Calibrate, fits_a_record_again) {
  const Ran ran = run("calibrate --from " + record() + " --out " + profile());
  EXPECT_EQ(ran.exit_code, 0) << ran.err;
  EXPECT_NE(ran.out.find("schedule.whole_tile_us"), std::string::npos) << ran.out;
  const DeviceProfile read = profile_from_json(text_of(profile()));
  EXPECT_STREQ(read.name.data(), "a card (calibrated)");
  EXPECT_NEAR(read.schedule.merge_us, calibrate::secret().schedule.merge_us, 1e-6);
  const nlohmann::json plan = json("plan --json " + make_case() + " --profile " + profile());
  EXPECT_EQ(plan["device"], "a card (calibrated)");
  // Shapes that the record timed are compared with it.
  nlohmann::json timed = nlohmann::json::parse(text_of(record()));
  timed["shapes"] = {{{"shape", "l3-8"},
                      {"scale", 1.0},
                      {"run_us", {{"median", 15.0}, {"min", 14.0}, {"count", 25}}}}};
  std::ofstream(dir_ / "timed.json") << timed.dump();
  const nlohmann::json compared = json("calibrate --json --from " + (dir_ / "timed.json"));
  for (const nlohmann::json& shape : compared["shapes"]) {
    EXPECT_EQ(shape.contains("run_us"), shape["shape"] == "l3-8");
  }
  EXPECT_EQ(compared["share_within_20_pct"], 1);
  // What --json prints is such a record itself.
  std::ofstream(dir_ / "again.json") << run("calibrate --json --from " + record()).out;
  EXPECT_EQ(json("calibrate --json --from " + (dir_ / "again.json"))["profile"],
            nlohmann::json::parse(text_of(profile())));
}

TEST_F(Calibrate, refuses_bad_input_and_writes_nothing) {
  const std::string out = " --out " + profile();
  expect_refused("calibrate --out /nonexistent/x", "/nonexistent/x: cannot create");
  expect_refused("calibrate --shapes l3-9" + out, "l3-9");
  expect_refused("calibrate --threads -1" + out, "threads: got -1");
  expect_refused("calibrate --from " + (dir_ / "absent") + out, "absent: cannot open");
  expect_refused("calibrate --check --from x" + out, "--from");
  EXPECT_TRUE(dir_.empty());
  std::ofstream(dir_ / "bad.json") << "{}";
  expect_refused("calibrate --from " + (dir_ / "bad.json") + out,
                 "bad.json: from: got a record without base");
  EXPECT_FALSE(std::filesystem::exists(profile()));
}

TEST_F(Calibrate, a_profile_that_is_none_is_refused_by_file_and_key) {
  make_case();
  const std::vector<std::string> commands{"plan " + file(), "bench --shapes l3-8",
                                          "verify --suite seed", "info", "bench --plan-only"};
  for (const std::string& command : commands) {
    expect_refused(command + " --profile " + (dir_ / "absent"), "want one of cpu, h100, or a file");
    std::ofstream(profile()) << profile_to_json(cpu_profile(1)).replace(5, 6, "formats");
    expect_refused(command + " --profile " + profile(), profile() + ": profile.format: missing");
  }
  std::ofstream(profile()) << profile_to_json(h100_profile());
  expect_refused("bench --shapes l3-8 --profile " + profile(), "which is for CUDA, but");
  std::ofstream(profile()) << profile_to_json(cpu_profile(1));
  expect_refused("plan " + file() + " --threads 2 --profile " + profile(), "threads: got 2");
}

}  // namespace
}  // namespace pando
