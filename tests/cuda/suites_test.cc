// The suites of `pando verify` on a CUDA device. A test holds many cases: a context takes longer to
// make than most of them to run.
#include "cases/suites.h"

#include <fmt/format.h>

#include "cuda/device_test.h"

namespace pando::cases {
namespace {

class CudaSuites : public DeviceTest {
 protected:
  /// Runs all cases; at least one of them must not be skipped.
  void expect_passes(const std::vector<SuiteCase>& cases) {
    Runner runner(0, Backend::kCuda);
    int ran = 0;
    std::string skipped;
    for (const SuiteCase& each : cases) {
      const Outcome outcome = run_case(each, runner);
      if (outcome.status == Status::kSkipped) {
        skipped += fmt::format("{}: {}\n", each.name, outcome.note);
        continue;
      }
      EXPECT_TRUE(outcome.status == Status::kPassed) << each.name << ": " << outcome.note;
      ++ran;
    }
    if (ran == 0) GTEST_SKIP() << skipped;
    if (!skipped.empty()) fmt::print("left out:\n{}", skipped);
  }
};

TEST_F(CudaSuites, seed) { expect_passes(seed_suite({})); }
TEST_F(CudaSuites, shapes) { expect_passes(shapes_suite({})); }
TEST_F(CudaSuites, random) { expect_passes(random_suite({.random_cases = 300})); }

/// Cases of one row of the edges suite: their names start with its number.
class CudaEdges : public CudaSuites, public ::testing::WithParamInterface<int> {};

TEST_P(CudaEdges, row) {
  std::vector<SuiteCase> row;
  for (SuiteCase& each : edges_suite({})) {
    if (each.name.starts_with(fmt::format("{}-", GetParam()))) row.push_back(std::move(each));
  }
  ASSERT_FALSE(row.empty());
  expect_passes(row);
}

INSTANTIATE_TEST_SUITE_P(, CudaEdges, ::testing::Range(1, 16), ::testing::PrintToStringParamName());

}  // namespace
}  // namespace pando::cases
