// Pages of KV memory with reference counts (host bookkeeping only).
#pragma once

#include <cstdint>
#include <vector>

namespace pando {

/// Hands out page ids in [0, num_pages); a page is free again when its last reference goes.
class KvPool {
 public:
  /// num_pages in [1, 2^31-1]; page_tokens a power of two in [1, 256].
  KvPool(int32_t num_pages, int32_t page_tokens);

  /// A page with one reference; throws kOutOfPages when none is free.
  int32_t allocate();
  /// Adds a reference to a page in use; throws kInvalidArgument for a free or unknown page.
  void retain(int32_t page);
  /// Drops a reference; throws kInvalidArgument for a free or unknown page, and for one whose
  /// references are all those of prefix trees.
  void release(int32_t page);

  int32_t references(int32_t page) const;
  int32_t free_pages() const { return static_cast<int32_t>(free_.size()); }
  int32_t num_pages() const { return static_cast<int32_t>(references_.size()); }
  int32_t page_tokens() const { return page_tokens_; }

 private:
  friend class PageCache;
  friend class PrefixTree;

  // As allocate, retain and release, with a reference that only the tree itself can drop.
  int32_t take();
  void hold(int32_t page);
  void drop(int32_t page) noexcept;

  void check(int32_t page, const char* what) const;
  std::vector<int32_t> references_;
  std::vector<int32_t> held_;  // of these, those of prefix trees
  std::vector<int32_t> free_;
  int32_t page_tokens_;
};

}  // namespace pando
