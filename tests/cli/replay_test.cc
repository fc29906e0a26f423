#include "replay/replay.h"

#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "pando/error.h"
#include "pando/plan.h"
#include "replay/report.h"

namespace pando::replay {
namespace {

/// Requests of `prompt` tokens whose first blocks carry the hash ids 0, 1, ...; the last of each
/// is its own.
Trace common_prefix_trace(int count, int32_t blocks, int32_t answer) {
  Trace trace;
  for (int i = 0; i < count; ++i) {
    Request request{.timestamp_ms = 0,
                    .input_tokens = blocks * kBlockTokens,
                    .output_tokens = answer,
                    .hash_ids = {}};
    for (int64_t block = 0; block + 1 < blocks; ++block) request.hash_ids.push_back(block);
    request.hash_ids.push_back(1000 + i);
    trace.push_back(request);
  }
  return trace;
}

ReplayOptions small_options() {
  ReplayOptions options;
  options.slots = 4;
  options.pool_tokens = 4096;
  options.scale = {1, 16};
  options.steps = 0;
  options.q_heads = 4;
  options.kv_heads = 2;
  options.head_dim = 16;
  options.threads = 1;
  options.check_every = 1;
  options.check_rows = 9;  // more than there are: all
  return options;
}

/// A device that reads so slowly that sharing always pays.
DeviceProfile slow_memory() {
  DeviceProfile profile = cpu_profile(1);
  profile.dram_bytes_per_us = 1;
  profile.cache_bytes_per_us = 1;
  return profile;
}

TEST(Replay, shared_blocks_are_cached_once_and_read_once) {
  // Scaled by 1/16 a block is 32 tokens: two pages. Prompts of 5 blocks, 4 of them common.
  ReplayOptions options = small_options();
  options.profile = slow_memory();
  const ReplayResult result = run_replay(common_prefix_trace(4, 5, 48), options);
  EXPECT_EQ(result.counts.prompt_tokens, 4 * 160);
  EXPECT_EQ(result.counts.cached_tokens, 3 * 128);
  EXPECT_EQ(result.counts.admitted, 4);
  EXPECT_EQ(result.counts.finished, 4);
  ASSERT_EQ(result.steps.size(), 3U);
  const StepRecord& first = result.steps.front();
  constexpr int64_t kTokenBytes = 2 * 2 * 16 * 2;  // K and V, kv_heads, head_dim, bf16
  EXPECT_EQ(first.sequences, 4);
  EXPECT_EQ(first.tokens, 4 * 161);
  EXPECT_EQ(first.shared_segments, 1);
  EXPECT_EQ(first.unshared_kv_bytes, 4 * 161 * kTokenBytes);
  EXPECT_EQ(first.kv_bytes, (128 + 4 * 33) * kTokenBytes);
  EXPECT_TRUE(result.oracle.passed) << result.oracle.worst_share;
  EXPECT_EQ(result.oracle.rows, 3 * 4 * 2);
  EXPECT_LE(result.oracle.worst_share, 1);
}

TEST(Replay, samples_of_one_prompt_share_it_by_fork) {
  ReplayOptions options = small_options();
  options.samples = 4;
  options.profile = slow_memory();
  Trace trace = common_prefix_trace(1, 3, 64);
  trace[0].input_tokens -= 100;  // 89 tokens: the last page is half full when it is forked
  const ReplayResult result = run_replay(trace, options);
  EXPECT_EQ(result.counts.admitted, 4);
  EXPECT_EQ(result.counts.copied_pages, 3);
  EXPECT_EQ(result.counts.prompt_tokens, 89);
  ASSERT_EQ(result.steps.size(), 4U);
  EXPECT_EQ(result.steps.front().tokens, 4 * 90);
  EXPECT_EQ(result.steps.front().shared_segments, 1);
  EXPECT_TRUE(result.oracle.passed) << result.oracle.worst_share;
}

TEST(Replay, every_dtype_agrees_with_the_oracle) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    ReplayOptions options = small_options();
    options.dtype = dtype;
    const ReplayResult result = run_replay(common_prefix_trace(6, 2, 32), options);
    EXPECT_TRUE(result.oracle.passed) << dtype_name(dtype) << " " << result.oracle.worst_share;
    EXPECT_EQ(result.counts.finished, 6);
  }
}

TEST(Replay, equal_seeds_replay_the_same_work) {
  const Trace trace = common_prefix_trace(5, 3, 40);
  ReplayOptions options = small_options();
  options.pool_tokens = 320;
  const ReplayResult a = run_replay(trace, options);
  const ReplayResult b = run_replay(trace, options);
  ASSERT_EQ(a.steps.size(), b.steps.size());
  for (size_t i = 0; i < a.steps.size(); ++i) {
    EXPECT_EQ(a.steps[i].tokens, b.steps[i].tokens);
    EXPECT_EQ(a.steps[i].kv_bytes, b.steps[i].kv_bytes);
  }
  EXPECT_EQ(a.oracle.max_error, b.oracle.max_error);
}

TEST(Replay, progress_hears_of_every_step) {
  std::vector<int64_t> heard;
  ReplayOptions options = small_options();
  options.steps = 2;
  run_replay(common_prefix_trace(2, 2, 160), options,
             [&](const StepRecord& record) { heard.push_back(record.step); });
  EXPECT_EQ(heard, (std::vector<int64_t>{0, 1}));
}

TEST(Replay, trace_that_fits_nowhere_is_refused) {
  ReplayOptions options = small_options();
  options.pool_tokens = 64;
  try {
    run_replay(common_prefix_trace(2, 4, 16), options);
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.code, ErrorCode::kOutOfPages);
    EXPECT_EQ(error.message,
              "pool_tokens: got 64, want more: each of the 2 requests of the trace is longer");
  }
}

TEST(Replay, bad_options_are_refused_by_name) {
  const auto refused = [](const std::string& name, auto change) {
    ReplayOptions options = small_options();
    change(options);
    try {
      run_replay(common_prefix_trace(1, 1, 1), options);
      ADD_FAILURE() << "accepted a bad " << name;
    } catch (const Error& error) {
      EXPECT_EQ(error.code, ErrorCode::kInvalidArgument);
      EXPECT_EQ(error.message.rfind(name + ": got ", 0), 0U) << error.message;
    }
  };
  refused("slots", [](ReplayOptions& o) { o.slots = 0; });
  refused("samples", [](ReplayOptions& o) { o.samples = 5; });
  refused("pool_tokens", [](ReplayOptions& o) { o.pool_tokens = 0; });
  refused("pool_tokens", [](ReplayOptions& o) {
    o.pool_tokens = (1LL << 31) - 1;
    o.head_dim = 4096;
  });
  refused("page_tokens", [](ReplayOptions& o) { o.page_tokens = 24; });
  refused("page_tokens", [](ReplayOptions& o) { o.page_tokens = 512; });
  refused("scale", [](ReplayOptions& o) { o.scale.denominator = 0; });
  refused("steps", [](ReplayOptions& o) { o.steps = -1; });
  refused("repeats", [](ReplayOptions& o) { o.repeats = 0; });
  refused("step_ms", [](ReplayOptions& o) { o.step_ms = std::nan(""); });
  refused("q_heads", [](ReplayOptions& o) { o.q_heads = 3; });
  refused("kv_heads", [](ReplayOptions& o) { o.kv_heads = 0; });
  refused("head_dim", [](ReplayOptions& o) { o.head_dim = 0; });
  refused("threads", [](ReplayOptions& o) { o.threads = -1; });
  refused("check_every", [](ReplayOptions& o) { o.check_every = -1; });
  refused("check_rows", [](ReplayOptions& o) { o.check_rows = 0; });
}

TEST(Replay, refusals_say_what_would_be_right) {
  const auto said = [](auto change) -> std::string {
    ReplayOptions options = small_options();
    change(options);
    try {
      options.check();
    } catch (const Error& error) {
      return error.message;
    }
    return "accepted";
  };
  EXPECT_EQ(said([](ReplayOptions& o) { o.slots = 1, o.samples = 5; }),
            "samples: got 5, want [1, 1]: up to slots");
  EXPECT_EQ(said([](ReplayOptions& o) { o.q_heads = 2, o.kv_heads = 5; }),
            "kv_heads: got 5, want [1, 2]: up to q_heads");
  EXPECT_EQ(said([](ReplayOptions& o) { o.step_ms = INFINITY; }),
            "step_ms: got inf, want 0 or more, and finite");
}

TEST(Scale, is_a_whole_number_or_a_fraction) {
  EXPECT_EQ(Scale::parse("1/16").apply(100), 6);
  EXPECT_EQ(Scale::parse("2").apply(100), 200);
  EXPECT_EQ(Scale::parse("3/2").apply(5), 7);
  for (const char* text : {"", "/", "1/", "/2", "0", "1/0", "-1", "1/-2", "1.5", "1/16x", "1 /2",
                           "1/2/3", "1048577", "99999999999999999999"}) {
    EXPECT_THROW(Scale::parse(text), Error) << text;
  }
}

TEST(Report, spread_takes_nearest_ranks) {
  EXPECT_EQ(spread({}).median, 0);
  EXPECT_EQ(spread({5}).p99, 5);
  EXPECT_EQ(spread({3, 1, 2}).median, 2);
  EXPECT_EQ(spread({4, 1, 2, 3}).median, 2);
  std::vector<double> hundred;
  for (int i = 1; i <= 100; ++i) hundred.push_back(101 - i);
  EXPECT_EQ(spread(hundred).median, 50);
  EXPECT_EQ(spread(hundred).p99, 99);
}

TEST(Report, summary_adds_up_and_both_forms_hold_it) {
  ReplayResult result;
  result.requests = 9;
  result.steps.resize(2);
  result.steps[0] = {0, 3, 30, 1, 10, 5, 100, 3, 200, 1000, 4000};
  result.steps[1] = {1, 2, 20, 0, 1, 5, 100, 3, 100, 1000, 1000};
  result.oracle = {4, 0.5, 1, 0.5, true};
  const Summary summary = summarise(result);
  EXPECT_EQ(summary.decoded_tokens, 5);
  EXPECT_EQ(summary.shared_steps, 1);
  EXPECT_EQ(summary.kv_bytes, 2000);
  EXPECT_EQ(summary.unshared_kv_bytes, 5000);
  EXPECT_DOUBLE_EQ(summary.ratio.median, 0.5);
  EXPECT_DOUBLE_EQ(summary.ratio.p99, 1);
  EXPECT_DOUBLE_EQ(summary.shared_ratio.p99, 0.5);
  EXPECT_DOUBLE_EQ(summary.total_ratio, 221.0 / 306.0);

  const std::string text = to_text(result);
  EXPECT_NE(text.find("60.0 % saved"), std::string::npos) << text;
  EXPECT_NE(text.find("oracle: passed over 4 rows"), std::string::npos) << text;
  const nlohmann::json json = to_json(result);
  EXPECT_EQ(json["summary"]["kv_bytes"], 2000);
  EXPECT_EQ(json["counts"]["requests"], 9);
  ASSERT_EQ(json["steps"].size(), 2U);
  EXPECT_EQ(json["steps"][0]["unshared_us"], 200);
  EXPECT_EQ(json["options"]["scale"], "1");
}

TEST(Report, failed_oracle_is_shouted_and_is_still_json) {
  ReplayResult result;
  result.steps.resize(1);
  const double inf = std::numeric_limits<double>::infinity();
  result.oracle = {1, inf, 1, inf, false};
  EXPECT_NE(to_text(result).find("oracle: FAILED"), std::string::npos);
  EXPECT_TRUE(to_json(result)["oracle"]["max_error"].is_null());
  EXPECT_EQ(to_json(result)["oracle"]["passed"], false);
}

}  // namespace
}  // namespace pando::replay
