// The suites of `pando verify`, each case a test.
#include "cases/suites.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <ostream>

namespace pando::cases {

/// How a failed test names its case.
void PrintTo(const SuiteCase& each, std::ostream* out) { *out << each.suite << " " << each.name; }

namespace {

class Suites : public testing::TestWithParam<SuiteCase> {
 protected:
  static Runner& runner() {
    static Runner kept;  // executors and planner scratch live on, as in a server
    return kept;
  }
};

TEST_P(Suites, agrees_with_the_oracle) {
  const Outcome outcome = run_case(GetParam(), runner());
  if (outcome.status == Status::kSkipped) GTEST_SKIP() << outcome.note;
  EXPECT_TRUE(outcome.status == Status::kPassed) << outcome.note;
  EXPECT_GT(outcome.runs, 0);
}

std::string test_name(const testing::TestParamInfo<SuiteCase>& info) {
  std::string name = info.param.name;
  std::ranges::replace_if(
      name, [](unsigned char c) { return !std::isalnum(c); }, '_');
  return name;
}

/// All kinds of the rows that take a moment, one kind of the large ones.
std::vector<SuiteCase> edges() {
  const auto is_large = [](const SuiteCase& each) {
    return each.name.starts_with("8-") || each.name.starts_with("12-");
  };
  std::vector<SuiteCase> chosen = edges_suite({});
  std::erase_if(chosen, is_large);
  for (SuiteCase& each : edges_suite({.quick = true})) {
    if (is_large(each)) chosen.push_back(std::move(each));
  }
  return chosen;
}

INSTANTIATE_TEST_SUITE_P(Seed, Suites, testing::ValuesIn(seed_suite({})), test_name);
INSTANTIATE_TEST_SUITE_P(Edges, Suites, testing::ValuesIn(edges()), test_name);
INSTANTIATE_TEST_SUITE_P(Shapes, Suites, testing::ValuesIn(shapes_suite({.quick = true})),
                         test_name);
INSTANTIATE_TEST_SUITE_P(Random, Suites, testing::ValuesIn(random_suite({.random_cases = 300})),
                         test_name);

TEST(SuiteNames, every_name_gives_cases_of_its_suite) {
  for (const std::string_view name : kSuiteNames) {
    const std::vector<SuiteCase> cases = suite(name, {.quick = true, .random_cases = 3});
    EXPECT_FALSE(cases.empty());
    for (const SuiteCase& each : cases) EXPECT_EQ(each.suite, name);
  }
  EXPECT_EQ(seed_suite({}).size(), 72u);
}

}  // namespace
}  // namespace pando::cases
