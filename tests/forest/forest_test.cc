#include "pando/forest.h"

#include <gtest/gtest.h>
#include <rapidcheck/gtest.h>

#include <algorithm>

#include "forest/batch_literal.h"
#include "pando/error.h"

namespace pando {
namespace {

using testing::NaiveForest;
using testing::OwnedBatch;
using testing::to_text;

std::string discovered(OwnedBatch batch) {
  const Forest forest = discover(batch.view());
  EXPECT_EQ(to_text(forest), to_text(NaiveForest(batch)));
  return to_text(forest);
}

TEST(Discover, empty_batch_has_no_segment) {
  OwnedBatch batch;
  const Forest forest = discover(batch.view());
  EXPECT_TRUE(forest.segments().empty());
  EXPECT_EQ(forest.sequences(), 0);
  EXPECT_EQ(forest.q_rows(), 0);
  EXPECT_EQ(forest.max_page_id(), -1);
}

TEST(Discover, prefix_of_the_whole_batch_is_one_segment) {
  EXPECT_EQ(discovered(OwnedBatch::of({{7, 8, 1}, {7, 8, 2}, {7, 8, 3}})),
            "[0,8) x3 {} by 0\n"
            "  [8,12) x1 {0} by 0\n"
            "  [8,12) x1 {1} by 1\n"
            "  [8,12) x1 {2} by 2\n"
            "order: 0 1 2\n");
}

TEST(Discover, sharing_need_not_be_the_whole_batch_nor_adjacent) {
  EXPECT_EQ(discovered(OwnedBatch::of({{7, 1}, {9, 2}, {7, 3}, {5}})),
            "[0,4) x2 {} by 0\n"
            "  [4,8) x1 {0} by 0\n"
            "  [4,8) x1 {2} by 2\n"
            "[0,8) x1 {1} by 1\n"
            "[0,4) x1 {3} by 3\n"
            "order: 0 2 1 3\n");
}

TEST(Discover, levels_nest) {
  EXPECT_EQ(discovered(OwnedBatch::of({{1, 2, 4}, {1, 2, 5}, {1, 3, 6}, {1, 3, 7}})),
            "[0,4) x4 {} by 0\n"
            "  [4,8) x2 {} by 0\n"
            "    [8,12) x1 {0} by 0\n"
            "    [8,12) x1 {1} by 1\n"
            "  [4,8) x2 {} by 2\n"
            "    [8,12) x1 {2} by 2\n"
            "    [8,12) x1 {3} by 3\n"
            "order: 0 1 2 3\n");
}

TEST(Discover, sequence_that_is_a_prefix_of_another_ends_inside) {
  EXPECT_EQ(discovered(OwnedBatch::of({{1, 2, 3}, {1, 2}, {1}})),
            "[0,4) x3 {2} by 0\n"
            "  [4,8) x2 {1} by 0\n"
            "    [8,12) x1 {0} by 0\n"
            "order: 2 1 0\n");
}

TEST(Discover, duplicates_share_everything) {
  EXPECT_EQ(discovered(OwnedBatch::of({{1, 2}, {3}, {1, 2}, {3}})),
            "[0,8) x2 {0 2} by 0\n"
            "[0,4) x2 {1 3} by 1\n"
            "order: 0 2 1 3\n");
}

TEST(Discover, same_page_at_another_position_is_not_shared) {
  EXPECT_EQ(discovered(OwnedBatch::of({{1, 2}, {2, 1}, {3, 2}})),
            "[0,8) x1 {0} by 0\n"
            "[0,8) x1 {1} by 1\n"
            "[0,8) x1 {2} by 2\n"
            "order: 0 1 2\n");
}

TEST(Discover, partly_filled_last_page_is_shared_up_to_the_longest) {
  OwnedBatch batch = OwnedBatch::of({{1, 2}, {1, 2}, {1, 2, 3}});
  batch.kv_len = {5, 7, 9};
  EXPECT_EQ(discovered(batch),
            "[0,8) x3 {0 1} by 0\n"
            "  [8,9) x1 {2} by 2\n"
            "order: 0 1 2\n");
}

TEST(Discover, entries_past_the_length_are_never_read) {
  OwnedBatch batch = OwnedBatch::of({{1, 2, -1, -1}, {1, 3, -7, -1}});
  batch.kv_len = {5, 8};
  EXPECT_EQ(discovered(batch),
            "[0,4) x2 {} by 0\n"
            "  [4,5) x1 {0} by 0\n"
            "  [4,8) x1 {1} by 1\n"
            "order: 0 1\n");
}

TEST(Discover, sequences_without_kv_come_last) {
  OwnedBatch batch = OwnedBatch::of({{}, {1}, {}, {1}});
  EXPECT_EQ(discovered(batch),
            "[0,4) x2 {1 3} by 1\n"
            "order: 1 3 0 2\n");
}

TEST(Discover, page_ids_reach_the_largest_int32) {
  OwnedBatch batch = OwnedBatch::of({{2147483647, 0}, {2147483647, 1}});
  EXPECT_EQ(discover(batch.view()).max_page_id(), 2147483647);
}

TEST(Discover, many_sequences) {
  OwnedBatch batch;
  for (int32_t b = 0; b < 80000; ++b) batch.pages.push_back({b / 2, 100000 + b});
  batch.kv_len.assign(80000, 8);
  const Forest forest = discover(batch.view());
  EXPECT_EQ(forest.segments().size(), 120000u);
}

// --- refusals -------------------------------------------------------------------------------

struct Misuse {
  const char* name;
  void (*spoil)(OwnedBatch& batch, BatchView& view);
  const char* message;
};

class DiscoverMisuse : public ::testing::TestWithParam<Misuse> {};

TEST_P(DiscoverMisuse, names_the_argument) {
  OwnedBatch batch = OwnedBatch::of({{1, 2}, {1, 3}});
  Forest forest = discover(batch.view());
  const std::string before = to_text(forest);
  BatchView view = batch.view();
  GetParam().spoil(batch, view);
  const bool seen_by_update = std::string(GetParam().name) != "page_id_negative";
  for (int update = 0; update <= int{seen_by_update}; ++update) {  // known pages are not read again
    try {
      update ? forest.update(view) : forest.discover(view);
      ADD_FAILURE() << "accepted";
    } catch (const Error& error) {
      EXPECT_EQ(error.code, ErrorCode::kInvalidArgument);
      EXPECT_NE(error.message.find(GetParam().message), std::string::npos) << error.message;
    }
    EXPECT_EQ(to_text(forest), before);
  }
}

INSTANTIATE_TEST_SUITE_P(
    , DiscoverMisuse,
    ::testing::Values(Misuse{"page_tokens_zero", [](auto&, auto& v) { v.page_tokens = 0; },
                             "page_tokens: got 0, want a power of two in [1, 256]"},
                      Misuse{"page_tokens_not_a_power", [](auto&, auto& v) { v.page_tokens = 12; },
                             "page_tokens: got 12"},
                      Misuse{"page_tokens_too_large", [](auto&, auto& v) { v.page_tokens = 512; },
                             "page_tokens: got 512"},
                      Misuse{"q_indptr_short",
                             [](auto&, auto& v) { v.q_indptr = v.q_indptr.first(2); },
                             "q_indptr: got 2 entries, want 3"},
                      Misuse{"q_indptr_decreases",
                             [](auto& b, auto&) {
                               b.q_indptr = {0, 2, 1};
                             },
                             "q_indptr[2]: got 1 after 2"},
                      Misuse{"q_indptr_starts_late",
                             [](auto& b, auto&) {
                               b.q_indptr = {1, 2, 3};
                             },
                             "q_indptr[0]: got 1, want 0"},
                      Misuse{"page_indptr_long",
                             [](auto& b, auto& v) {
                               b.page_indptr.push_back(4);
                               v.page_indptr = b.page_indptr;
                             },
                             "page_indptr: got 4 entries, want 3"},
                      Misuse{"page_indptr_decreases",
                             [](auto& b, auto&) {
                               b.page_indptr = {0, 3, 2};
                             },
                             "page_indptr[2]: got 2 after 3"},
                      Misuse{"page_indptr_negative",
                             [](auto& b, auto&) {
                               b.page_indptr = {-1, 2, 4};
                             },
                             "page_indptr[0]: got -1"},
                      Misuse{"page_indptr_past_the_ids",
                             [](auto& b, auto&) {
                               b.page_indptr = {0, 2, 5};
                             },
                             "page_ids: got 4 ids, want page_indptr's last entry, 5, or more"},
                      Misuse{"kv_len_negative",
                             [](auto& b, auto&) {
                               b.kv_len = {8, -1};
                             },
                             "kv_len[1]: got -1"},
                      Misuse{"kv_len_beyond_the_table",
                             [](auto& b, auto&) {
                               b.kv_len = {8, 9};
                             },
                             "kv_len[1]: got 9 tokens, want at most 8 (2 pages of 4 tokens)"},
                      Misuse{"page_id_negative", [](auto& b, auto&) { b.page_ids[3] = -5; },
                             "page_ids[3]: got -5 (sequence 1, page 1), want 0 or more"}),
    [](const auto& info) { return info.param.name; });

TEST(ForestUpdate, refuses_a_shorter_sequence_unless_listed) {
  OwnedBatch batch = OwnedBatch::of({{1, 2}, {1, 3}});
  Forest forest = discover(batch.view());
  batch.kv_len = {8, 4};
  const BatchView view = batch.view();
  EXPECT_THROW(forest.update(view), Error);
  const int32_t listed[] = {1};
  forest.update(view, listed);
  EXPECT_EQ(to_text(forest), to_text(NaiveForest(batch)));
}

TEST(ForestUpdate, refuses_a_listed_sequence_out_of_range) {
  OwnedBatch batch = OwnedBatch::of({{1, 2}, {1, 3}});
  Forest forest = discover(batch.view());
  for (const int32_t bad : {-1, 2}) {
    const int32_t listed[] = {bad};
    EXPECT_THROW(forest.update(batch.view(), listed), Error);
  }
}

TEST(ForestUpdate, refuses_a_negative_id_in_an_appended_page) {
  OwnedBatch batch = OwnedBatch::of({{1, 2}, {1, 3}});
  Forest forest = discover(batch.view());
  batch.pages[1].push_back(-3);
  batch.kv_len[1] = 12;
  EXPECT_THROW(forest.update(batch.view()), Error);
}

TEST(ForestUpdate, largest_page_id_goes_with_the_sequence_that_held_it) {
  OwnedBatch batch = OwnedBatch::of({{1, 1000000}, {1, 3}});
  Forest forest = discover(batch.view());
  batch.pages[0][1] = 2;
  const int32_t listed[] = {0};
  forest.update(batch.view(), listed);
  EXPECT_EQ(forest.max_page_id(), 3);
  batch = OwnedBatch::of({{1, 2}});
  forest.update(batch.view());
  EXPECT_EQ(forest.max_page_id(), 2);
  batch.pages[0].push_back(-3);
  batch.kv_len[0] = 12;
  EXPECT_THROW(forest.update(batch.view()), Error);
  EXPECT_EQ(forest.max_page_id(), 2);
}

// --- against the naive forest ---------------------------------------------------------------

/// Few distinct ids, so that random tables share often.
OwnedBatch random_batch() {
  OwnedBatch batch;
  batch.page_tokens = 1 << *rc::gen::inRange(0, 4);
  const int sequences = *rc::gen::inRange(0, 12);
  const int ids = *rc::gen::inRange(1, 4);
  for (int b = 0; b < sequences; ++b) {
    auto pages = *rc::gen::container<std::vector<int32_t>>(rc::gen::inRange(0, ids));
    const auto capacity = static_cast<int32_t>(pages.size()) * batch.page_tokens;
    batch.kv_len.push_back(*rc::gen::inRange(0, capacity + 1));
    batch.pages.push_back(std::move(pages));
  }
  return batch;
}

RC_GTEST_PROP(Discover, equals_the_naive_forest, ()) {
  OwnedBatch batch = random_batch();
  const Forest forest = discover(batch.view());
  RC_ASSERT(to_text(forest) == to_text(NaiveForest(batch)));
}

/// One serving step: sequences grow, some are replaced, some leave or arrive at the end.
std::vector<int32_t> random_step(OwnedBatch& batch) {
  std::vector<int32_t> changed;
  const OwnedBatch fresh = random_batch();
  const int32_t page_tokens = batch.page_tokens;
  const size_t before = batch.pages.size();
  const size_t kept = *rc::gen::inRange<size_t>(0, batch.pages.size() + 1);
  if (*rc::gen::inRange(0, 4) == 0) {
    batch.pages.resize(kept);
    batch.kv_len.resize(kept);
  }
  for (size_t b = 0; b < batch.pages.size(); ++b) {
    const int what = *rc::gen::inRange(0, 6);
    auto& pages = batch.pages[b];
    if (what == 0 && b < fresh.pages.size()) {
      pages = fresh.pages[b];
      batch.kv_len[b] = *rc::gen::inRange<int32_t>(0, pages.size() * page_tokens + 1);
      changed.push_back(static_cast<int32_t>(b));
    } else if (what <= 4) {
      pages.resize((batch.kv_len[b] + page_tokens - 1) / page_tokens);
      const int grow = *rc::gen::inRange(0, 3 * page_tokens);
      batch.kv_len[b] += grow;
      while (static_cast<int32_t>(pages.size()) * page_tokens < batch.kv_len[b]) {
        pages.push_back(*rc::gen::inRange(0, 3));
      }
    }
  }
  for (size_t b = batch.pages.size(); b < fresh.pages.size(); ++b) {
    if (*rc::gen::inRange(0, 3) != 0) break;
    if (b < before) changed.push_back(static_cast<int32_t>(b));
    batch.pages.push_back(fresh.pages[b]);
    batch.kv_len.push_back(*rc::gen::inRange<int32_t>(0, fresh.pages[b].size() * page_tokens + 1));
  }
  return changed;
}

RC_GTEST_PROP(ForestUpdate, equals_discover_after_any_steps, ()) {
  OwnedBatch batch = random_batch();
  Forest forest = discover(batch.view());
  const int steps = *rc::gen::inRange(1, 8);
  for (int step = 0; step < steps; ++step) {
    const std::vector<int32_t> changed = random_step(batch);
    forest.update(batch.view(), changed);
    RC_ASSERT(to_text(forest) == to_text(NaiveForest(batch)));
    RC_ASSERT(std::ranges::equal(forest.kv_len(), batch.kv_len));
    RC_ASSERT(forest.max_page_id() == discover(batch.view()).max_page_id());
  }
}

}  // namespace
}  // namespace pando
