#include "replay/scheduler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

#include "core/convert.h"
#include "replay/tokens.h"

namespace pando::replay {
namespace {

Request request(int32_t input, int32_t output, std::vector<int64_t> hash_ids, int64_t ms = 0) {
  return {.timestamp_ms = ms,
          .input_tokens = input,
          .output_tokens = output,
          .hash_ids = std::move(hash_ids)};
}

ReplayOptions tiny_options() {
  ReplayOptions options;
  options.slots = 3;
  options.page_tokens = 4;
  options.pool_tokens = 4096;
  options.q_heads = 1;
  options.kv_heads = 1;
  options.head_dim = 8;
  options.dtype = DType::kF32;
  return options;
}

/// Runs a trace to its end and checks every batch on the way.
class CheckedRun {
 public:
  CheckedRun(Trace trace, const ReplayOptions& options)
      : trace_(std::move(trace)),
        options_(options),
        memory_(options_),
        scheduler_(trace_, options_, memory_) {}

  bool step() {
    if (!scheduler_.step()) return false;
    check_unlisted_go_on();
    check_filled();
    return true;
  }
  std::vector<int32_t> lengths() const {
    const auto lengths = scheduler_.batch().kv_len;
    return {lengths.begin(), lengths.end()};
  }
  /// Lengths of every step to the end.
  std::vector<std::vector<int32_t>> all_lengths() {
    std::vector<std::vector<int32_t>> all;
    while (step()) all.push_back(lengths());
    return all;
  }
  std::vector<int32_t> pages(int32_t slot) const {
    const BatchView batch = scheduler_.batch();
    const int32_t count = (batch.kv_len[slot] + options_.page_tokens - 1) / options_.page_tokens;
    const auto table = batch.page_ids.subspan(batch.page_indptr[slot], count);
    return {table.begin(), table.end()};
  }
  const Scheduler& scheduler() const { return scheduler_; }

 private:
  /// What Forest::update asks of sequences that are not listed.
  void check_unlisted_go_on() {
    const auto changed = scheduler_.changed();
    const std::set<int32_t> listed(changed.begin(), changed.end());
    std::vector<std::vector<int32_t>> now;
    for (int32_t slot = 0; slot < scheduler_.batch().sequences(); ++slot) {
      now.push_back(pages(slot));
      if (slot >= static_cast<int32_t>(before_.size()) || listed.contains(slot)) continue;
      ASSERT_GE(now[slot].size(), before_[slot].size());
      for (size_t i = 0; i < before_[slot].size(); ++i) ASSERT_EQ(now[slot][i], before_[slot][i]);
    }
    before_ = now;
  }
  /// Every visible token has K and V; what was never written is NaN.
  void check_filled() {
    const BatchView batch = scheduler_.batch();
    for (int32_t slot = 0; slot < batch.sequences(); ++slot) {
      const std::vector<int32_t> table = pages(slot);
      for (int32_t t = 0; t < batch.kv_len[slot]; ++t) {
        const int64_t at =
            memory_.layout().offset(table[t / options_.page_tokens], 0, t % options_.page_tokens);
        ASSERT_FALSE(std::isnan(load_element(memory_.k(), at, options_.dtype)));
        ASSERT_FALSE(std::isnan(load_element(memory_.v(), at + 7, options_.dtype)));
      }
    }
  }

  Trace trace_;
  ReplayOptions options_;
  KvMemory memory_;
  Scheduler scheduler_;
  std::vector<std::vector<int32_t>> before_;
};

TEST(Scheduler, requests_are_taken_in_order_as_slots_free_up) {
  CheckedRun run({request(2, 2, {1}), request(3, 1, {2}), request(4, 3, {3}), request(9, 1, {4})},
                 tiny_options());
  EXPECT_EQ(run.all_lengths(), (std::vector<std::vector<int32_t>>{{3, 4, 5}, {4, 6, 10}, {7}}));
  const Counts counts = run.scheduler().counts();
  EXPECT_EQ(counts.admitted, 4);
  EXPECT_EQ(counts.finished, 4);
  EXPECT_EQ(counts.preempted, 0);
}

TEST(Scheduler, changed_lists_slots_that_hold_another_sequence) {
  CheckedRun run({request(2, 1, {1}), request(2, 9, {2}), request(6, 9, {3})}, tiny_options());
  ASSERT_TRUE(run.step());
  EXPECT_TRUE(run.scheduler().changed().empty());  // all are new
  const std::vector<int32_t> moving = run.pages(2);
  ASSERT_TRUE(run.step());  // the last slot moved into the first
  EXPECT_EQ(std::vector(run.scheduler().changed().begin(), run.scheduler().changed().end()),
            (std::vector<int32_t>{0}));
  EXPECT_EQ(run.pages(0), moving);
  ASSERT_TRUE(run.step());
  EXPECT_TRUE(run.scheduler().changed().empty());
}

TEST(Scheduler, equal_prompts_share_whole_pages) {
  CheckedRun run({request(10, 3, {1}), request(10, 3, {1}), request(6, 3, {1})}, tiny_options());
  ASSERT_TRUE(run.step());
  EXPECT_EQ(run.pages(0)[1], run.pages(1)[1]);
  EXPECT_NE(run.pages(0)[2], run.pages(1)[2]);
  EXPECT_EQ(run.pages(0)[0], run.pages(2)[0]);
  EXPECT_EQ(run.scheduler().counts().cached_tokens, 8 + 4);
}

TEST(Scheduler, forked_samples_copy_their_half_full_page) {
  ReplayOptions options = tiny_options();
  options.samples = 2;
  CheckedRun run({request(6, 9, {1}), request(5, 9, {2})}, options);
  EXPECT_EQ(run.all_lengths().size(), 18U);  // three slots hold two samples of one request
  EXPECT_EQ(run.scheduler().counts().copied_pages, 2);
  EXPECT_EQ(run.scheduler().counts().admitted, 4);
}

TEST(Scheduler, youngest_sequence_is_preempted_and_goes_on_later) {
  ReplayOptions options = tiny_options();
  options.pool_tokens = 24;  // 6 pages
  CheckedRun run({request(7, 12, {1}), request(7, 12, {2}), request(7, 4, {3})}, options);
  std::vector<std::vector<int32_t>> all = run.all_lengths();
  EXPECT_EQ(all[0], (std::vector<int32_t>{8, 8, 8}));
  EXPECT_EQ(all[1], (std::vector<int32_t>{9, 9}));  // three more pages were not to be had
  const Counts counts = run.scheduler().counts();
  EXPECT_GE(counts.preempted, 1);
  EXPECT_EQ(counts.finished, 3);
  EXPECT_EQ(counts.admitted, 3 + counts.preempted);
  int64_t decoded = 0;  // each token of each answer once
  for (const auto& lengths : all) decoded += static_cast<int64_t>(lengths.size());
  EXPECT_EQ(decoded, 12 + 12 + 4);
}

TEST(Scheduler, preempted_sequence_waits_until_another_ends) {
  ReplayOptions options = tiny_options();
  options.pool_tokens = 16;  // 4 pages: the third sequence finds none for its fifth token
  CheckedRun run({request(4, 3, {1}), request(1, 5, {2}), request(3, 3, {3})}, options);
  EXPECT_EQ(run.all_lengths(),
            (std::vector<std::vector<int32_t>>{{5, 2, 4}, {6, 3}, {7, 4}, {5, 5}, {6, 6}}));
  EXPECT_EQ(run.scheduler().counts().preempted, 1);
  EXPECT_EQ(run.scheduler().counts().cached_tokens, 4);  // its page had not been evicted
}

TEST(Scheduler, preempted_sequences_go_on_in_their_first_order) {
  ReplayOptions options = tiny_options();
  options.slots = 4;
  options.pool_tokens = 16;
  CheckedRun run({request(3, 2, {1}), request(3, 2, {2}), request(1, 2, {3}), request(2, 2, {4})},
                 options);
  EXPECT_EQ(run.all_lengths(), (std::vector<std::vector<int32_t>>{{4, 4, 2, 3}, {5, 5}, {3, 4}}));
  EXPECT_EQ(run.scheduler().counts().preempted, 2);
}

TEST(Scheduler, requests_longer_than_the_pool_are_skipped_and_counted) {
  ReplayOptions options = tiny_options();
  options.pool_tokens = 16;
  CheckedRun run({request(16, 1, {1}), request(8, 8, {2}),
                  request(16777216, 16777216, std::vector<int64_t>(32768))},
                 options);
  EXPECT_EQ(run.all_lengths().size(), 8U);
  EXPECT_EQ(run.scheduler().counts().refused, 2);
  EXPECT_EQ(run.scheduler().counts().finished, 1);
}

TEST(Scheduler, released_prompts_stay_cached_and_are_evicted_for_room) {
  ReplayOptions options = tiny_options();
  options.slots = 1;
  options.pool_tokens = 16;
  CheckedRun run({request(8, 1, {1}), request(8, 1, {1}), request(12, 1, {2}), request(8, 1, {1})},
                 options);
  EXPECT_EQ(run.all_lengths().size(), 4U);
  EXPECT_EQ(run.scheduler().counts().cached_tokens, 8);
  EXPECT_GE(run.scheduler().counts().evicted_pages, 2);
}

TEST(Scheduler, arrivals_are_waited_for_when_steps_take_time) {
  ReplayOptions options = tiny_options();
  options.step_ms = 10;
  CheckedRun run({request(1, 3, {1}, 1000), request(2, 1, {2}, 1015), request(3, 1, {3}, 9000)},
                 options);
  EXPECT_EQ(run.all_lengths(), (std::vector<std::vector<int32_t>>{{2}, {3}, {4, 3}, {4}}));
}

TEST(Tokens, equal_leading_ids_give_equal_leading_tokens_at_every_scale) {
  const Request a = request(1500, 1, {7, 8, 9});
  const Request b = request(2000, 1, {7, 8, 1, 9});
  for (const Scale scale : {Scale{1, 1}, Scale{1, 16}, Scale{1, 3}, Scale{2, 7}, Scale{3, 2}}) {
    const std::vector<int32_t> x = prompt_tokens(a, scale);
    const std::vector<int32_t> y = prompt_tokens(b, scale);
    const int64_t common = scale.apply(2 * kBlockTokens);
    ASSERT_EQ(static_cast<int64_t>(x.size()), scale.apply(1500));
    for (int64_t t = 0; t < common; ++t) ASSERT_EQ(x[t], y[t]);
    EXPECT_NE(x[common], y[common]);
  }
}

TEST(Tokens, shortest_prompt_and_answer_are_one_token) {
  const Request tiny = request(3, 0, {5});
  EXPECT_EQ(prompt_tokens(tiny, {1, 16}).size(), 1U);
  EXPECT_EQ(scaled_answer(tiny, {1, 16}), 1);
  EXPECT_EQ(prompt_tokens(request(3, 0, {5}), {1, 16}), prompt_tokens(tiny, {1, 16}));
}

TEST(Tokens, answers_differ_by_request_sample_and_position) {
  std::set<int32_t> tokens;
  for (int64_t request = 0; request < 4; ++request) {
    for (int32_t sample = 0; sample < 4; ++sample) {
      for (int64_t position = 0; position < 64; ++position) {
        tokens.insert(answer_token(0, request, sample, position));
      }
    }
  }
  EXPECT_EQ(tokens.size(), 4U * 4U * 64U);
}

}  // namespace
}  // namespace pando::replay
