// Misuse of attend: each is refused by an error that names the argument, and nothing is written.
#include "plan/check_args.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "cpu/attend_case.h"
#include "support/message_of.h"

namespace pando::testing {
namespace {

class CheckArgs : public ::testing::Test {
 protected:
  CheckArgs()
      : problem(spec(), 16, {{1, 100, 4}, {2, 90, 4}}),
        plan(problem.plan(cpu_profile(1))),
        workspace(plan.workspace_bytes()),
        output(problem.blank_output()) {}

  static AttentionSpec spec() {
    AttentionSpec s;
    s.q_heads = 4;
    s.kv_heads = 2;
    s.head_dim = 64;
    s.dtype = DType::kBF16;
    return s;
  }

  /// Expects attend to refuse arguments changed by `spoil`, with a message that starts with
  /// `argument` and has `got` in it.
  void expect_refused(const std::string& argument, const std::string& got,
                      const std::function<void(AttendArgs&)>& spoil,
                      ErrorCode code = ErrorCode::kInvalidArgument) {
    AttendArgs args = problem.args(output, workspace.span());
    spoil(args);
    const Output before = output;
    try {
      attend(plan, args, executor);
      ADD_FAILURE() << argument << ": not refused";
    } catch (const Error& error) {
      EXPECT_EQ(error.code, code) << error.message;
      EXPECT_TRUE(error.message.starts_with(argument + ":")) << error.message;
      EXPECT_NE(error.message.find(got), std::string::npos) << error.message;
      EXPECT_NE(error.message.find("want"), std::string::npos) << error.message;
    }
    EXPECT_EQ(output, before) << argument;
  }

  AttendCase problem;
  Plan plan;
  Workspace workspace;
  Output output;
  CpuExecutor executor{1};
};

TEST_F(CheckArgs, sinks_must_be_numbers) {
  std::vector<float> sinks(4, 0.5f);
  const auto set = [&](AttendArgs& args) { args.sinks = sinks.data(); };
  sinks[2] = NAN;
  expect_refused("sinks[2]", "got nan", set);
  sinks[2] = INFINITY;
  expect_refused("sinks[2]", "got inf", set);
  expect_refused("sinks", "aligned to 4 bytes", [&](AttendArgs& args) {
    args.sinks = reinterpret_cast<const float*>(reinterpret_cast<const char*>(sinks.data()) + 1);
  });
}

TEST_F(CheckArgs, accepts_what_is_right) {
  attend(plan, problem.args(output, workspace.span()), executor);
  EXPECT_TRUE(problem.check(output).passed());
}

TEST_F(CheckArgs, refuses_null_pointers) {
  expect_refused("q", "null", [](AttendArgs& a) { a.q.data = nullptr; });
  expect_refused("k", "null", [](AttendArgs& a) { a.k = nullptr; });
  expect_refused("v", "null", [](AttendArgs& a) { a.v = nullptr; });
  expect_refused("out", "null", [](AttendArgs& a) { a.out.data = nullptr; });
  expect_refused("page_ids", "0 ids", [](AttendArgs& a) { a.page_ids = {}; });
}

TEST_F(CheckArgs, refuses_pointers_between_elements) {
  const auto shifted = [](const void* p) { return static_cast<const std::byte*>(p) + 1; };
  expect_refused("q", "address", [&](AttendArgs& a) { a.q.data = shifted(a.q.data); });
  expect_refused("k", "address", [&](AttendArgs& a) { a.k = shifted(a.k); });
  expect_refused("v", "address", [&](AttendArgs& a) { a.v = shifted(a.v); });
  expect_refused("out", "address",
                 [](AttendArgs& a) { a.out.data = static_cast<std::byte*>(a.out.data) + 1; });
  expect_refused("lse", "address", [](AttendArgs& a) {
    a.lse = reinterpret_cast<float*>(reinterpret_cast<std::byte*>(a.lse) + 1);
  });
}

TEST_F(CheckArgs, refuses_row_strides_that_overlap) {
  expect_refused("q.head_stride", "got 63", [](AttendArgs& a) {
    a.q.row_stride = 256;
    a.q.head_stride = 63;
  });
  expect_refused("q.row_stride", "got 255", [](AttendArgs& a) {
    a.q.row_stride = 255;
    a.q.head_stride = 64;
  });
  expect_refused("out.row_stride", "got -256", [](AttendArgs& a) {
    a.out.row_stride = -256;
    a.out.head_stride = 64;
  });
  expect_refused("out.head_stride", "got 0", [](AttendArgs& a) { a.out.row_stride = 256; });
  expect_refused("out.row_stride", "63 bits", [](AttendArgs& a) {
    a.out.row_stride = int64_t{1} << 62;
    a.out.head_stride = 64;
  });
}

TEST_F(CheckArgs, refuses_another_kv_layout_than_the_plan_has) {
  expect_refused("kv.page_tokens", "got 32", [](AttendArgs& a) { a.kv.page_tokens = 32; });
  expect_refused("kv.kv_heads", "got 4", [](AttendArgs& a) { a.kv.kv_heads = 4; });
  expect_refused("kv.head_dim", "got 128", [](AttendArgs& a) { a.kv.head_dim = 128; });
  expect_refused("kv.num_pages", "got 1", [](AttendArgs& a) { a.kv.num_pages = 1; });
  expect_refused("kv.token_stride", "got 32", [](AttendArgs& a) { a.kv.token_stride = 32; });
  expect_refused("kv.head_stride", "got 1000", [](AttendArgs& a) { a.kv.head_stride = 1000; });
  expect_refused("kv.page_stride", "got -1", [](AttendArgs& a) { a.kv.page_stride = -1; });
  expect_refused("kv.page_stride", "63 bits",
                 [](AttendArgs& a) { a.kv.page_stride = int64_t{1} << 61; });
}

TEST_F(CheckArgs, refuses_a_short_page_table) {
  expect_refused("page_ids", "ids",
                 [](AttendArgs& a) { a.page_ids = a.page_ids.first(a.page_ids.size() - 1); });
}

TEST_F(CheckArgs, refuses_a_small_or_misaligned_workspace) {
  expect_refused("workspace", "bytes",
                 [](AttendArgs& a) { a.workspace = a.workspace.first(a.workspace.size() - 1); });
  expect_refused("workspace", "0 bytes", [](AttendArgs& a) { a.workspace = {}; });
  expect_refused("workspace", "64 bytes", [](AttendArgs& a) {
    a.workspace = {a.workspace.data() + 4, a.workspace.size()};
  });
}

TEST_F(CheckArgs, refuses_an_empty_plan) {
  plan = Plan();
  expect_refused("plan", "empty", [](AttendArgs&) {});
}

TEST_F(CheckArgs, refuses_a_plan_for_another_backend) {
  AttentionSpec on_h100 = spec();
  on_h100.head_dim = 128;
  plan = AttendCase(on_h100, 16, {{1, 100, 4}, {2, 90, 4}}).plan(h100_profile());
  expect_refused(
      "plan", "CUDA", [](AttendArgs&) {}, ErrorCode::kTypeMismatch);
}

TEST_F(CheckArgs, refuses_a_plan_whose_scratch_is_too_small) {
  std::vector<std::byte> bytes(plan.bytes().begin(), plan.bytes().end());
  PlanHeader header;
  std::memcpy(&header, bytes.data(), sizeof(header));
  header.scratch_bytes = 64;
  std::memcpy(bytes.data(), &header, sizeof(header));
  plan = Plan::from_bytes(bytes);
  expect_refused("plan", "64 scratch bytes", [](AttendArgs&) {});
}

}  // namespace
}  // namespace pando::testing
