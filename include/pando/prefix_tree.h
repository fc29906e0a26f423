// A radix tree over token ids: who shares which pages, for those who have no engine of their own.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

#include "pando/batch.h"
#include "pando/kv_pool.h"

namespace pando {

/// Names a live sequence of a PrefixTree; never reused within one tree.
using SequenceId = int64_t;

/// The caller must copy the first `tokens` slots of page `from` to page `to`, K and V, all heads.
struct PageCopy {
  int32_t from;
  int32_t to;
  int32_t tokens;
};

/// What insert did: tokens [0, cached_tokens) are in the pages already, the caller fills the rest.
struct InsertResult {
  SequenceId sequence;
  int32_t cached_tokens;
};

/// Where the appended token's K and V go, after `copy` when it is set (copy-on-write).
struct AppendResult {
  int32_t page;
  int32_t slot;
  std::optional<PageCopy> copy;
};

/// Prefix cache of whole pages plus the page lists of live sequences.
///
/// Whole pages of inserted and appended tokens stay cached after their sequences are released, and
/// are evicted least recently used first when the pool runs dry; pages that live sequences hold
/// are never evicted. A half-full page is shared only by fork, and copied when one side appends.
class PrefixTree {
 public:
  /// The tree allocates from `pool`, which must outlive it.
  explicit PrefixTree(KvPool& pool);
  ~PrefixTree();
  PrefixTree(const PrefixTree&) = delete;
  PrefixTree& operator=(const PrefixTree&) = delete;

  /// Number of leading tokens whose pages are cached (a multiple of page_tokens). Does not touch
  /// LRU.
  int32_t match(std::span<const int32_t> tokens) const;
  /// Starts a sequence of these tokens. Throws kOutOfPages, and changes nothing, when they do not
  /// fit even after evicting all that can be.
  InsertResult insert(std::span<const int32_t> tokens);
  /// A second sequence with the same tokens, on the same pages.
  SequenceId fork(SequenceId sequence);
  /// Appends one token. Throws kOutOfPages, and changes nothing, when no page can be had.
  AppendResult append(SequenceId sequence, int32_t token);
  /// Ends a sequence; its whole pages stay cached until evicted.
  void release(SequenceId sequence);
  /// Evicts up to `pages` cached pages that no live sequence holds; returns how many.
  int32_t evict(int32_t pages);

  std::span<const int32_t> pages(SequenceId sequence) const;
  int32_t length(SequenceId sequence) const;  ///< tokens
  int32_t live_sequences() const;
  int32_t cached_pages() const;   ///< pages the tree itself holds a reference to
  int64_t evicted_pages() const;  ///< since construction

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace pando
