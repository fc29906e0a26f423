#include "pando/kv_pool.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <map>
#include <string>

#include "pando/error.h"
#include "support/message_of.h"

namespace pando {
namespace {

using testing::message_of;

TEST(KvPool, hands_out_every_page_once) {
  KvPool pool(3, 16);
  EXPECT_EQ(pool.num_pages(), 3);
  EXPECT_EQ(pool.page_tokens(), 16);
  EXPECT_EQ(pool.allocate(), 0);
  EXPECT_EQ(pool.allocate(), 1);
  EXPECT_EQ(pool.allocate(), 2);
  EXPECT_EQ(pool.free_pages(), 0);
}

TEST(KvPool, out_of_pages_when_none_is_free) {
  KvPool pool(1, 1);
  const int32_t page = pool.allocate();
  EXPECT_EQ(message_of(ErrorCode::kOutOfPages, [&] { pool.allocate(); }),
            "pool: got a request for a page with 0 of 1 free, want 1 free");
  EXPECT_EQ(pool.references(page), 1);
  pool.release(page);
  EXPECT_EQ(pool.allocate(), page);
}

TEST(KvPool, page_is_free_only_when_its_last_reference_goes) {
  KvPool pool(2, 4);
  const int32_t page = pool.allocate();
  pool.retain(page);
  EXPECT_EQ(pool.references(page), 2);
  pool.release(page);
  EXPECT_EQ(pool.free_pages(), 1);
  pool.release(page);
  EXPECT_EQ(pool.free_pages(), 2);
  EXPECT_EQ(pool.references(page), 0);
}

TEST(KvPool, free_and_unknown_pages_are_refused_by_name) {
  KvPool pool(2, 4);
  constexpr auto kInvalid = ErrorCode::kInvalidArgument;
  EXPECT_EQ(message_of(kInvalid, [&] { pool.release(1); }),
            "page: got 1, which is free, want a page in use to release");
  EXPECT_EQ(message_of(kInvalid, [&] { pool.retain(0); }),
            "page: got 0, which is free, want a page in use to retain");
  EXPECT_EQ(message_of(kInvalid, [&] { pool.retain(2); }), "page: got 2, want [0, 2)");
  EXPECT_EQ(message_of(kInvalid, [&] { pool.release(-1); }), "page: got -1, want [0, 2)");
  EXPECT_EQ(message_of(kInvalid, [&] { pool.references(7); }), "page: got 7, want [0, 2)");
}

TEST(KvPool, sizes_out_of_range_are_refused_by_name) {
  constexpr auto kInvalid = ErrorCode::kInvalidArgument;
  EXPECT_EQ(message_of(kInvalid, [] { KvPool(0, 16); }), "num_pages: got 0, want at least 1");
  EXPECT_EQ(message_of(kInvalid, [] { KvPool(-5, 16); }), "num_pages: got -5, want at least 1");
  for (const int32_t page_tokens : {-1, 0, 3, 24, 257, 512}) {
    EXPECT_EQ(
        message_of(kInvalid, [=] { KvPool(1, page_tokens); }),
        "page_tokens: got " + std::to_string(page_tokens) + ", want a power of two in [1, 256]");
  }
  for (const int32_t page_tokens : {1, 2, 16, 256}) EXPECT_NO_THROW(KvPool(1, page_tokens));
}

RC_GTEST_PROP(KvPool, no_page_is_lost_or_freed_twice, ()) {
  const auto num_pages = *rc::gen::inRange<int32_t>(1, 10);
  KvPool pool(num_pages, 8);
  std::map<int32_t, int32_t> references;
  for (const auto& [operation, number] : *rc::gen::container<std::vector<std::pair<int, int32_t>>>(
           rc::gen::pair(rc::gen::inRange(0, 3), rc::gen::inRange(-1, num_pages + 1)))) {
    const int32_t page = number;
    const bool in_use = references.contains(page);
    if (operation == 0 && static_cast<int32_t>(references.size()) < num_pages) {
      RC_ASSERT(references.emplace(pool.allocate(), 1).second);
    } else if (operation == 0) {
      RC_ASSERT_THROWS_AS(pool.allocate(), Error);
    } else if (!in_use) {
      RC_ASSERT_THROWS_AS(operation == 1 ? pool.retain(page) : pool.release(page), Error);
    } else if (operation == 1) {
      pool.retain(page);
      ++references[page];
    } else {
      pool.release(page);
      if (--references[page] == 0) references.erase(page);
    }
    RC_ASSERT(pool.free_pages() == num_pages - static_cast<int32_t>(references.size()));
    for (int32_t i = 0; i < num_pages; ++i) {
      RC_ASSERT(pool.references(i) == (references.contains(i) ? references[i] : 0));
    }
  }
}

}  // namespace
}  // namespace pando
