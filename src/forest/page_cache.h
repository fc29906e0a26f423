// The tree of cached pages: lookup by token path, and which page goes first when room is needed.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "pando/kv_pool.h"

namespace pando {

/// Whole pages of a pool, each a child of the page before it, found by the tokens they hold.
///
/// In use are the pages that live sequences hold and the ancestors of these. A cached page that is
/// not in use is in the eviction list: it enters when its last use goes, hence after all its
/// descendants, and leaves before any of them is used again. So the oldest entry is always a leaf,
/// and evicting it takes no page's prefix away. Nodes are indexed by page id: nothing is allocated
/// after construction.
class PageCache {
 public:
  static constexpr int32_t kNone = -1;

  explicit PageCache(KvPool& pool);

  /// What the page holds, page_tokens of them; written by the owner of the page.
  int32_t* tokens(int32_t page) { return tokens_.data() + int64_t{page} * page_tokens_; }

  /// The cached page that holds these page_tokens tokens after `parent` (kNone: at the start).
  int32_t child(int32_t parent, const int32_t* tokens) const;
  /// The cached pages that hold the longest run of leading whole pages of `tokens`.
  std::vector<int32_t> match(std::span<const int32_t> tokens) const;

  /// Counts a use by a live sequence, and thereby of the pages before it.
  void use(int32_t page);
  /// Gives a use back. Pages enter the eviction list once nothing after them is in use.
  void unuse(int32_t page);

  /// Caches a page in use whose tokens are all written; the cache takes a reference of its own.
  void insert(int32_t page, int32_t parent);
  /// Makes the pool have `pages` free ones by evicting, but none of `kept`, which is a path from
  /// the start; or throws kOutOfPages and changes nothing.
  void reserve(int32_t pages, std::span<const int32_t> kept = {});
  /// Evicts the page that has not been in use for longest; false when every page is in use.
  bool evict_oldest();
  /// Gives back every reference that the cache holds.
  void clear();

  bool cached(int32_t page) const { return nodes_[page].serial != 0; }
  /// Differs between one caching of a page and the next; 0 for a page that is not cached.
  int64_t serial(int32_t page) const { return nodes_[page].serial; }
  int32_t cached_pages() const { return cached_pages_; }
  int64_t evicted_pages() const { return evicted_pages_; }

 private:
  struct Node {
    int32_t parent = kNone;
    int32_t uses = 0;  // live sequences that hold the page + cached children in use
    int32_t next_in_bucket = kNone;
    int32_t older = kNone;  // neighbours in the eviction list
    int32_t newer = kNone;
    bool kept = false;  // not to be chosen by the eviction under way
    uint64_t hash = 0;  // of parent and tokens
    int64_t serial = 0;
  };

  int32_t& bucket(uint64_t hash) { return buckets_[hash & (buckets_.size() - 1)]; }
  int32_t last_to_evict(int32_t pages) const;
  void push_newest(int32_t page);
  void unlink(int32_t page);
  void evict(int32_t page);

  KvPool& pool_;
  int32_t page_tokens_;
  std::vector<Node> nodes_;
  std::vector<int32_t> tokens_;   // [num_pages, page_tokens]
  std::vector<int32_t> buckets_;  // hash table of the cached pages
  int32_t oldest_ = kNone;
  int32_t newest_ = kNone;
  int32_t cached_pages_ = 0;
  int64_t evicted_pages_ = 0;
  int64_t next_serial_ = 1;
};

}  // namespace pando
