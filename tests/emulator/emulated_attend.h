// What the tests of the attend kernel on the host have in common.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "cases/runner.h"
#include "cases/suites.h"
#include "emulator/attend.h"

namespace pando::cases {

class EmulatedAttend : public ::testing::Test {
 protected:
  static Runner runner(int thread_blocks, uint64_t seed = 0) {
    DeviceProfile profile = h100_profile();
    profile.workers = thread_blocks;
    return Runner(profile, [seed](const Plan& plan, const AttendArgs& args) {
      emulator::attend(plan, args, seed);
    });
  }
  static void expect_correct(const Case& problem, int thread_blocks) {
    expect_correct(problem, runner(thread_blocks).attend(problem, {}));
  }
  static void expect_correct(const Case& problem, const Output& output) {
    EXPECT_EQ(output.overrun, "");
    const CheckResult result = Reference(problem).check(output);
    EXPECT_TRUE(result.passed()) << "error " << result.got.max_err_out << ", allowed "
                                 << result.allowed.out << "; lse " << result.got.max_err_lse
                                 << ", allowed " << result.allowed.lse;
  }
  static void expect_passes(const std::vector<SuiteCase>& cases) {
    Runner on_three = runner(3);
    int ran = 0;
    for (const SuiteCase& each : cases) {
      const Outcome outcome = run_case(each, on_three);
      if (outcome.status == Status::kSkipped) continue;
      EXPECT_TRUE(outcome.status == Status::kPassed) << each.name << ": " << outcome.note;
      ++ran;
    }
    EXPECT_GT(ran, 0);
  }
};

}  // namespace pando::cases
