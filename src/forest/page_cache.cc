#include "forest/page_cache.h"

#include <algorithm>
#include <bit>

#include "core/check.h"

namespace pando {
namespace {

uint64_t mix(uint64_t value) {
  value ^= value >> 32;
  value *= 0xd6e8feb86659fd93u;
  return value ^ (value >> 29);
}

uint64_t hash_page(int32_t parent, const int32_t* tokens, int32_t count) {
  uint64_t hash = mix(static_cast<uint32_t>(parent) + 0x9e3779b97f4a7c15u);
  for (int32_t i = 0; i < count; ++i) hash = mix(hash + static_cast<uint32_t>(tokens[i]));
  return hash;
}

}  // namespace

PageCache::PageCache(KvPool& pool)
    : pool_(pool),
      page_tokens_(pool.page_tokens()),
      nodes_(pool.num_pages()),
      tokens_(static_cast<size_t>(pool.num_pages()) * page_tokens_),
      buckets_(std::bit_ceil(static_cast<size_t>(pool.num_pages())), kNone) {}

int32_t PageCache::child(int32_t parent, const int32_t* tokens) const {
  const uint64_t hash = hash_page(parent, tokens, page_tokens_);
  int32_t page = buckets_[hash & (buckets_.size() - 1)];
  for (; page != kNone; page = nodes_[page].next_in_bucket) {
    if (nodes_[page].hash == hash && nodes_[page].parent == parent &&
        std::equal(tokens, tokens + page_tokens_, &tokens_[int64_t{page} * page_tokens_])) {
      break;
    }
  }
  return page;
}

std::vector<int32_t> PageCache::match(std::span<const int32_t> tokens) const {
  std::vector<int32_t> path;
  const size_t whole_pages = tokens.size() / page_tokens_;
  int32_t page = kNone;
  while (path.size() < whole_pages) {
    page = child(page, &tokens[path.size() * page_tokens_]);
    if (page == kNone) break;
    path.push_back(page);
  }
  return path;
}

void PageCache::use(int32_t page) {
  for (; page != kNone && nodes_[page].uses++ == 0 && cached(page); page = nodes_[page].parent) {
    unlink(page);
  }
}

void PageCache::unuse(int32_t page) {
  for (; page != kNone && --nodes_[page].uses == 0 && cached(page); page = nodes_[page].parent) {
    push_newest(page);
  }
}

void PageCache::insert(int32_t page, int32_t parent) {
  Node& node = nodes_[page];
  pool_.hold(page);
  node.parent = parent;
  node.serial = next_serial_++;
  node.hash = hash_page(parent, tokens(page), page_tokens_);
  node.next_in_bucket = bucket(node.hash);
  bucket(node.hash) = page;
  ++cached_pages_;
  use(parent);
}

void PageCache::reserve(int32_t pages, std::span<const int32_t> kept) {
  if (pool_.free_pages() >= pages) return;
  for (const int32_t page : kept) nodes_[page].kept = true;
  const int32_t last = last_to_evict(pages);
  for (int32_t page = oldest_, next = kNone; last != kNone; page = next) {
    next = nodes_[page].newer;
    if (!nodes_[page].kept) evict(page);
    if (page == last) break;
  }
  for (const int32_t page : kept) nodes_[page].kept = false;
  if (last == kNone) {
    fail(ErrorCode::kOutOfPages,
         "pool: got a request for {} pages with {} of {} free and too few to evict, want {} free",
         pages, pool_.free_pages(), pool_.num_pages(), pages);
  }
}

/// Last entry of the eviction list that must go so that `pages` are free; kNone: not enough do.
int32_t PageCache::last_to_evict(int32_t pages) const {
  int32_t available = pool_.free_pages();
  for (int32_t page = oldest_; page != kNone; page = nodes_[page].newer) {
    // A page that somebody else has retained from the pool is not freed by eviction.
    available += !nodes_[page].kept && pool_.references(page) == 1;
    if (available >= pages) return page;
  }
  return kNone;
}

bool PageCache::evict_oldest() {
  if (oldest_ == kNone) return false;
  evict(oldest_);
  return true;
}

void PageCache::clear() {
  for (int32_t page = 0; page < static_cast<int32_t>(nodes_.size()); ++page) {
    if (cached(page)) pool_.drop(page);
  }
  nodes_.assign(nodes_.size(), Node{});
  std::fill(buckets_.begin(), buckets_.end(), kNone);
  oldest_ = newest_ = kNone;
  cached_pages_ = 0;
}

void PageCache::push_newest(int32_t page) {
  nodes_[page].older = newest_;
  nodes_[page].newer = kNone;
  (newest_ == kNone ? oldest_ : nodes_[newest_].newer) = page;
  newest_ = page;
}

void PageCache::unlink(int32_t page) {
  const Node& node = nodes_[page];
  (node.older == kNone ? oldest_ : nodes_[node.older].newer) = node.newer;
  (node.newer == kNone ? newest_ : nodes_[node.newer].older) = node.older;
}

/// Takes a page out of the eviction list and out of the tree.
void PageCache::evict(int32_t page) {
  Node& node = nodes_[page];
  int32_t* link = &bucket(node.hash);
  while (*link != page) link = &nodes_[*link].next_in_bucket;
  *link = node.next_in_bucket;
  unlink(page);
  node.serial = 0;
  --cached_pages_;
  ++evicted_pages_;
  pool_.drop(page);
}

}  // namespace pando
