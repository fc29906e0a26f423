#include "pando/prefix_tree.h"

#include <gtest/gtest.h>

#include <numeric>
#include <string>
#include <vector>

#include "pando/error.h"
#include "support/message_of.h"

namespace pando {
namespace {

using Ids = std::vector<int32_t>;

Ids pages_of(const PrefixTree& tree, SequenceId sequence) {
  const std::span<const int32_t> pages = tree.pages(sequence);
  return {pages.begin(), pages.end()};
}

using testing::message_of;

/// Appends tokens and returns the last result.
AppendResult append_all(PrefixTree& tree, SequenceId sequence, const Ids& tokens) {
  AppendResult result{};
  for (const int32_t token : tokens) result = tree.append(sequence, token);
  return result;
}

TEST(PrefixTree, equal_prompts_share_their_whole_pages) {
  KvPool pool(8, 4);
  PrefixTree tree(pool);
  const InsertResult a = tree.insert(Ids{1, 2, 3, 4, 5, 6, 7, 8, 9});
  const InsertResult b = tree.insert(Ids{1, 2, 3, 4, 5, 6, 7, 8, 9});
  EXPECT_EQ(a.cached_tokens, 0);
  EXPECT_EQ(b.cached_tokens, 8);
  EXPECT_NE(a.sequence, b.sequence);
  EXPECT_EQ(pages_of(tree, a.sequence), (Ids{0, 1, 2}));
  EXPECT_EQ(pages_of(tree, b.sequence), (Ids{0, 1, 3}));
  EXPECT_EQ(pool.references(0), 3);  // two sequences and the tree
  EXPECT_EQ(pool.references(3), 1);
  EXPECT_EQ(tree.cached_pages(), 2);
  EXPECT_EQ(tree.live_sequences(), 2);
}

TEST(PrefixTree, references_of_its_own_are_not_released_by_others) {
  KvPool pool(4, 4);
  {
    PrefixTree tree(pool);
    const InsertResult cached = tree.insert(Ids{1, 2, 3, 4, 5});
    for (const int32_t page : pages_of(tree, cached.sequence)) {
      pool.retain(page);
      pool.release(page);
      EXPECT_EQ(message_of(ErrorCode::kInvalidArgument, [&] { pool.release(page); }),
                "page: got " + std::to_string(page) +
                    ", which only prefix trees hold, want one with a reference of your own to "
                    "release");
    }
    EXPECT_EQ(pool.references(0), 2);
    tree.release(cached.sequence);
    EXPECT_THROW(pool.release(0), Error);  // the cache's
  }
  EXPECT_EQ(pool.free_pages(), 4);
}

TEST(PrefixTree, match_stops_at_the_first_page_that_differs) {
  KvPool pool(8, 2);
  PrefixTree tree(pool);
  tree.insert(Ids{1, 2, 3, 4, 5, 6});
  EXPECT_EQ(tree.match(Ids{1, 2, 3, 4, 5, 6, 7}), 6);
  EXPECT_EQ(tree.match(Ids{1, 2, 3, 4, 5}), 4);
  EXPECT_EQ(tree.match(Ids{1, 2, 9, 4, 5, 6}), 2);
  EXPECT_EQ(tree.match(Ids{3, 4, 5, 6}), 0);  // equal tokens, another position
  EXPECT_EQ(tree.match(Ids{}), 0);
}

TEST(PrefixTree, extreme_token_ids_are_ordinary) {
  constexpr int32_t kMin = std::numeric_limits<int32_t>::min();
  constexpr int32_t kMax = std::numeric_limits<int32_t>::max();
  KvPool pool(8, 2);
  PrefixTree tree(pool);
  tree.insert(Ids{kMin, kMax, -1, 0});
  EXPECT_EQ(tree.match(Ids{kMin, kMax, -1, 0}), 4);
  EXPECT_EQ(tree.match(Ids{kMin, kMax, 0, -1}), 2);
}

TEST(PrefixTree, empty_sequence_takes_no_page) {
  KvPool pool(1, 4);
  PrefixTree tree(pool);
  const SequenceId sequence = tree.insert(Ids{}).sequence;
  EXPECT_EQ(tree.length(sequence), 0);
  EXPECT_TRUE(tree.pages(sequence).empty());
  EXPECT_EQ(pool.free_pages(), 1);
  const SequenceId twin = tree.fork(sequence);
  EXPECT_EQ(tree.append(twin, 5).slot, 0);
  EXPECT_EQ(tree.length(sequence), 0);
}

TEST(PrefixTree, half_full_page_of_a_fork_is_copied_by_the_first_side_that_appends) {
  KvPool pool(8, 4);
  PrefixTree tree(pool);
  const SequenceId a = tree.insert(Ids{1, 2, 3, 4, 5, 6}).sequence;
  const SequenceId b = tree.fork(a);
  EXPECT_EQ(pages_of(tree, b), (Ids{0, 1}));
  const AppendResult first = tree.append(a, 7);
  ASSERT_TRUE(first.copy.has_value());
  EXPECT_EQ(first.copy->from, 1);
  EXPECT_EQ(first.copy->to, 2);
  EXPECT_EQ(first.copy->tokens, 2);
  EXPECT_EQ(first.page, 2);
  EXPECT_EQ(first.slot, 2);
  const AppendResult last = tree.append(b, 9);  // now the only holder
  EXPECT_FALSE(last.copy.has_value());
  EXPECT_EQ(last.page, 1);
  EXPECT_EQ(pages_of(tree, a), (Ids{0, 2}));
  EXPECT_EQ(pages_of(tree, b), (Ids{0, 1}));
}

TEST(PrefixTree, fork_at_a_page_boundary_copies_nothing) {
  KvPool pool(8, 4);
  PrefixTree tree(pool);
  const SequenceId a = tree.insert(Ids{1, 2, 3, 4}).sequence;
  const SequenceId b = tree.fork(a);
  EXPECT_FALSE(tree.append(a, 5).copy.has_value());
  EXPECT_FALSE(tree.append(b, 5).copy.has_value());
  EXPECT_NE(tree.pages(a)[1], tree.pages(b)[1]);
}

TEST(PrefixTree, page_that_a_caller_retains_is_copied_too) {
  KvPool pool(4, 4);
  PrefixTree tree(pool);
  const SequenceId a = tree.insert(Ids{1, 2}).sequence;
  pool.retain(0);  // a snapshot, say
  EXPECT_TRUE(tree.append(a, 3).copy.has_value());
  EXPECT_EQ(pool.references(0), 1);
}

TEST(PrefixTree, page_completed_by_append_becomes_cached) {
  KvPool pool(8, 4);
  PrefixTree tree(pool);
  const SequenceId a = tree.insert(Ids{1, 2, 3}).sequence;
  EXPECT_EQ(tree.cached_pages(), 0);
  append_all(tree, a, {4, 5, 6, 7, 8, 9});
  EXPECT_EQ(tree.cached_pages(), 2);
  tree.release(a);
  EXPECT_EQ(tree.match(Ids{1, 2, 3, 4, 5, 6, 7, 8, 9}), 8);
  EXPECT_EQ(pool.free_pages(), 6);
}

TEST(PrefixTree, equal_page_completed_later_stays_the_sequences_own) {
  KvPool pool(8, 2);
  PrefixTree tree(pool);
  const SequenceId a = tree.insert(Ids{1}).sequence;
  const SequenceId b = tree.insert(Ids{1}).sequence;
  append_all(tree, a, {2});
  append_all(tree, b, {2, 3, 4});
  EXPECT_EQ(pages_of(tree, a), (Ids{0}));
  EXPECT_EQ(pages_of(tree, b), (Ids{1, 2}));
  EXPECT_EQ(tree.cached_pages(), 2);  // page 0, and page 2 after it
  EXPECT_EQ(pool.references(1), 1);
  const SequenceId c = tree.insert(Ids{1, 2, 3, 4}).sequence;
  EXPECT_EQ(pages_of(tree, c), (Ids{0, 2}));
}

TEST(PrefixTree, own_pages_replace_an_equal_path_that_was_evicted) {
  KvPool pool(8, 2);
  PrefixTree tree(pool);
  const SequenceId a = tree.insert(Ids{1, 2, 3, 4}).sequence;
  const SequenceId b = tree.insert(Ids{1}).sequence;
  append_all(tree, b, {2, 3, 4});
  tree.release(a);
  EXPECT_EQ(tree.evict(8), 2);
  EXPECT_EQ(tree.cached_pages(), 0);
  append_all(tree, b, {5, 6});
  EXPECT_EQ(tree.cached_pages(), 3);
  EXPECT_EQ(tree.match(Ids{1, 2, 3, 4, 5, 6}), 6);
}

TEST(PrefixTree, released_pages_stay_cached_and_the_half_full_one_is_freed) {
  KvPool pool(4, 4);
  PrefixTree tree(pool);
  tree.release(tree.insert(Ids{1, 2, 3, 4, 5}).sequence);
  EXPECT_EQ(tree.live_sequences(), 0);
  EXPECT_EQ(tree.cached_pages(), 1);
  EXPECT_EQ(pool.free_pages(), 3);
  EXPECT_EQ(tree.insert(Ids{1, 2, 3, 4, 5}).cached_tokens, 4);
}

TEST(PrefixTree, least_recently_used_goes_first_and_leaves_before_their_prefix) {
  KvPool pool(8, 1);
  PrefixTree tree(pool);
  const SequenceId old = tree.insert(Ids{1, 2, 3}).sequence;
  const SequenceId young = tree.insert(Ids{1, 4}).sequence;
  tree.release(old);
  tree.release(young);
  EXPECT_EQ(tree.evict(1), 1);
  EXPECT_EQ(tree.match(Ids{1, 2, 3}), 2);
  EXPECT_EQ(tree.evict(1), 1);
  EXPECT_EQ(tree.match(Ids{1, 2, 3}), 1);
  EXPECT_EQ(tree.match(Ids{1, 4}), 2);
  EXPECT_EQ(tree.evict(1), 1);
  EXPECT_EQ(tree.match(Ids{1, 4}), 1);
  EXPECT_EQ(tree.evict(9), 1);
  EXPECT_EQ(tree.evict(9), 0);
  EXPECT_EQ(tree.evicted_pages(), 4);
  EXPECT_EQ(pool.free_pages(), 8);
}

TEST(PrefixTree, use_makes_a_prefix_recent_and_match_does_not) {
  KvPool pool(2, 1);
  PrefixTree tree(pool);
  tree.release(tree.insert(Ids{1}).sequence);
  tree.release(tree.insert(Ids{2}).sequence);
  EXPECT_EQ(tree.match(Ids{1}), 1);
  tree.release(tree.insert(Ids{3}).sequence);  // takes the place of 1
  EXPECT_EQ(tree.match(Ids{1}), 0);
  tree.release(tree.insert(Ids{2}).sequence);
  tree.release(tree.insert(Ids{4}).sequence);  // takes the place of 3
  EXPECT_EQ(tree.match(Ids{2}), 1);
  EXPECT_EQ(tree.match(Ids{3}), 0);
}

TEST(PrefixTree, eviction_spares_live_sequences_and_the_prefix_being_matched) {
  KvPool pool(4, 1);
  PrefixTree tree(pool);
  tree.release(tree.insert(Ids{1, 2}).sequence);
  const SequenceId live = tree.insert(Ids{7}).sequence;
  const InsertResult result = tree.insert(Ids{1, 3, 4});  // 1 stays though it is the oldest but one
  EXPECT_EQ(result.cached_tokens, 1);
  EXPECT_EQ(pages_of(tree, live), (Ids{2}));
  EXPECT_EQ(tree.evict(4), 0);
}

TEST(PrefixTree, prefix_being_matched_is_spared_even_when_it_is_the_oldest) {
  KvPool pool(3, 1);
  PrefixTree tree(pool);
  tree.release(tree.insert(Ids{1}).sequence);
  tree.release(tree.insert(Ids{2}).sequence);
  const InsertResult result = tree.insert(Ids{1, 3, 4});
  EXPECT_EQ(result.cached_tokens, 1);
  EXPECT_EQ(pages_of(tree, result.sequence), (Ids{0, 1, 2}));
  EXPECT_EQ(tree.match(Ids{2}), 0);
}

TEST(PrefixTree, out_of_pages_changes_nothing) {
  KvPool pool(4, 2);
  PrefixTree tree(pool);
  tree.release(tree.insert(Ids{1, 2}).sequence);
  tree.release(tree.insert(Ids{3, 4}).sequence);
  const SequenceId a = tree.insert(Ids{5, 6, 7}).sequence;
  const SequenceId b = tree.fork(a);
  EXPECT_EQ(message_of(ErrorCode::kOutOfPages,
                       [&] {
                         tree.insert(Ids{1, 2, 9, 9, 9, 9});
                       }),
            "pool: got a request for 2 pages with 0 of 4 free and too few to evict, want 2 free");
  EXPECT_EQ(tree.live_sequences(), 2);
  EXPECT_EQ(tree.match(Ids{1, 2}), 2);
  EXPECT_EQ(tree.match(Ids{3, 4}), 2);
  const SequenceId c = tree.insert(Ids{1, 2}).sequence;
  const SequenceId d = tree.insert(Ids{3, 4}).sequence;
  message_of(ErrorCode::kOutOfPages, [&] { tree.append(c, 1); });
  message_of(ErrorCode::kOutOfPages, [&] { tree.append(a, 8); });  // no page to copy to
  EXPECT_EQ(tree.length(a), 3);
  EXPECT_EQ(tree.length(c), 2);
  EXPECT_EQ(pages_of(tree, a), pages_of(tree, b));
  tree.release(d);
  EXPECT_TRUE(tree.append(a, 8).copy.has_value());  // 3, 4 had to go
  EXPECT_EQ(tree.match(Ids{3, 4}), 0);
}

TEST(PrefixTree, pages_retained_by_a_caller_do_not_count_as_room) {
  KvPool pool(2, 1);
  PrefixTree tree(pool);
  tree.release(tree.insert(Ids{1, 2}).sequence);
  pool.retain(1);
  message_of(ErrorCode::kOutOfPages, [&] { tree.insert(Ids{5, 6}); });
  EXPECT_EQ(tree.match(Ids{1, 2}), 2);
  tree.insert(Ids{5});  // page 0 can be had, after page 1 has left the tree
  EXPECT_EQ(pool.references(1), 1);
}

TEST(PrefixTree, unknown_sequences_are_refused_by_name) {
  KvPool pool(4, 2);
  PrefixTree tree(pool);
  const SequenceId ended = tree.insert(Ids{1}).sequence;
  tree.release(ended);
  constexpr auto kInvalid = ErrorCode::kInvalidArgument;
  const std::string wanted = "sequence: got 0, want a live sequence of this tree";
  EXPECT_EQ(message_of(kInvalid, [&] { tree.release(ended); }), wanted);
  EXPECT_EQ(message_of(kInvalid, [&] { tree.fork(ended); }), wanted);
  EXPECT_EQ(message_of(kInvalid, [&] { tree.append(ended, 1); }), wanted);
  EXPECT_EQ(message_of(kInvalid, [&] { tree.pages(ended); }), wanted);
  EXPECT_EQ(message_of(kInvalid, [&] { tree.length(ended); }), wanted);
  message_of(kInvalid, [&] { tree.length(-1); });
  EXPECT_EQ(message_of(kInvalid, [&] { tree.evict(-1); }), "pages: got -1, want 0 or more");
}

TEST(PrefixTree, destruction_returns_every_page) {
  KvPool pool(8, 2);
  {
    PrefixTree tree(pool);
    const SequenceId a = tree.insert(Ids{1, 2, 3, 4, 5}).sequence;
    tree.append(tree.fork(a), 6);
    tree.release(tree.insert(Ids{7, 8}).sequence);
    EXPECT_EQ(pool.free_pages(), 3);
  }
  EXPECT_EQ(pool.free_pages(), 8);
}

TEST(PrefixTree, long_equal_answers_are_walked_once) {
  constexpr int32_t kTokens = 200'000;  // quadratic work would not end in the time a test has
  KvPool pool(2 * kTokens, 1);
  PrefixTree tree(pool);
  Ids prompt(kTokens);
  std::iota(prompt.begin(), prompt.end(), 0);
  const SequenceId a = tree.insert(prompt).sequence;
  const SequenceId b = tree.insert(Ids{}).sequence;
  append_all(tree, b, prompt);
  EXPECT_EQ(tree.cached_pages(), kTokens);
  tree.release(a);
  EXPECT_EQ(tree.evict(kTokens), kTokens);
  append_all(tree, b, prompt);
  EXPECT_EQ(tree.cached_pages(), 2 * kTokens);
}

}  // namespace
}  // namespace pando
