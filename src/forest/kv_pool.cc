#include "pando/kv_pool.h"

#include <bit>
#include <limits>

#include "core/check.h"

namespace pando {

KvPool::KvPool(int32_t num_pages, int32_t page_tokens) : page_tokens_(page_tokens) {
  require(num_pages >= 1, "num_pages: got {}, want at least 1", num_pages);
  require(page_tokens >= 1 && page_tokens <= 256 &&
              std::has_single_bit(static_cast<uint32_t>(page_tokens)),
          "page_tokens: got {}, want a power of two in [1, 256]", page_tokens);
  references_.resize(num_pages);
  held_.resize(num_pages);
  free_.resize(num_pages);
  // The last entry is handed out first: low ids first, and a page just freed is still in cache.
  for (int32_t i = 0; i < num_pages; ++i) free_[i] = num_pages - 1 - i;
}

int32_t KvPool::allocate() {
  if (free_.empty()) {
    fail(ErrorCode::kOutOfPages, "pool: got a request for a page with 0 of {} free, want 1 free",
         num_pages());
  }
  const int32_t page = free_.back();
  free_.pop_back();
  references_[page] = 1;
  return page;
}

void KvPool::retain(int32_t page) {
  check(page, "retain");
  require(references_[page] < std::numeric_limits<int32_t>::max(),
          "page: got page {} with {} references, want fewer", page, references_[page]);
  ++references_[page];
}

void KvPool::release(int32_t page) {
  check(page, "release");
  require(references_[page] > held_[page],
          "page: got {}, which only prefix trees hold, want one with a reference of your own to "
          "release",
          page);
  if (--references_[page] == 0) free_.push_back(page);
}

int32_t KvPool::take() {
  const int32_t page = allocate();
  held_[page] = 1;
  return page;
}

void KvPool::hold(int32_t page) {
  retain(page);
  ++held_[page];
}

void KvPool::drop(int32_t page) noexcept {
  --held_[page];
  if (--references_[page] == 0) free_.push_back(page);  // has room for every page
}

int32_t KvPool::references(int32_t page) const {
  require(page >= 0 && page < num_pages(), "page: got {}, want [0, {})", page, num_pages());
  return references_[page];
}

void KvPool::check(int32_t page, const char* what) const {
  require(references(page) > 0, "page: got {}, which is free, want a page in use to {}", page,
          what);
}

}  // namespace pando
