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
TEST_F(CudaSuites, shapes) { expect_passes(shapes_suite({.quick = true})); }
TEST_F(CudaSuites, random) { expect_passes(random_suite({.random_cases = 300})); }
/// Terms of thousands that cancel under a soft cap.
TEST_F(CudaSuites, soft_caps_over_terms_that_cancel) {
  for (const uint64_t seed : {9042, 10404, 10480}) {
    expect_passes(random_suite({.random_cases = 1, .seed = seed}));
  }
}

/// One row of the edges suite: all kinds, but one kind where a case takes the oracle long.
std::vector<SuiteCase> edges_row(int row) {
  const std::string prefix = fmt::format("{}-", row);
  std::vector<SuiteCase> chosen;
  for (SuiteCase& each : edges_suite({.quick = row == 8})) {
    const bool one_kind = row == 12 && !each.name.ends_with("bf16/hnd");
    if (each.name.starts_with(prefix) && !one_kind) chosen.push_back(std::move(each));
  }
  return chosen;
}

class CudaEdges : public CudaSuites, public ::testing::WithParamInterface<int> {};

TEST_P(CudaEdges, row) {
  const std::vector<SuiteCase> row = edges_row(GetParam());
  ASSERT_FALSE(row.empty());
  expect_passes(row);
}

INSTANTIATE_TEST_SUITE_P(, CudaEdges, ::testing::Range(1, 16), ::testing::PrintToStringParamName());

}  // namespace
}  // namespace pando::cases
