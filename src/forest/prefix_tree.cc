#include "pando/prefix_tree.h"

#include <algorithm>
#include <limits>
#include <unordered_map>
#include <vector>

#include "core/check.h"
#include "forest/page_cache.h"

namespace pando {
namespace {

constexpr int32_t kNone = PageCache::kNone;

struct Sequence {
  std::vector<int32_t> pages;
  int32_t length = 0;
  /// The cached page that stands for the last whole page: that page itself, or the one of an equal
  /// path. The latter may be evicted meanwhile, which its serial tells.
  int32_t tip = kNone;
  int64_t tip_serial = 0;
};

}  // namespace

struct PrefixTree::State {
  explicit State(KvPool& kv_pool)
      : pool(kv_pool), page_tokens(kv_pool.page_tokens()), cache(kv_pool) {}

  KvPool& pool;
  int32_t page_tokens;
  PageCache cache;
  std::unordered_map<SequenceId, Sequence> sequences;
  SequenceId next_sequence = 0;

  Sequence& find(SequenceId sequence);
  void hold(int32_t page);
  void drop(int32_t page);
  int32_t take_page();
  void set_tip(Sequence& sequence, int32_t page);
  void cache_whole_pages(Sequence& sequence);
};

Sequence& PrefixTree::State::find(SequenceId sequence) {
  const auto it = sequences.find(sequence);
  require(it != sequences.end(), "sequence: got {}, want a live sequence of this tree", sequence);
  return it->second;
}

/// A live sequence takes a page that is in use or cached.
void PrefixTree::State::hold(int32_t page) {
  pool.hold(page);
  cache.use(page);
}

void PrefixTree::State::drop(int32_t page) {
  cache.unuse(page);
  pool.drop(page);
}

/// A free page, reserved before, for a live sequence.
int32_t PrefixTree::State::take_page() {
  const int32_t page = pool.take();
  cache.use(page);
  return page;
}

void PrefixTree::State::set_tip(Sequence& sequence, int32_t page) {
  sequence.tip = page;
  sequence.tip_serial = page == kNone ? 0 : cache.serial(page);
}

/// Caches every whole page of the sequence for which no equal path is cached, given that this was
/// done before the last page became whole.
void PrefixTree::State::cache_whole_pages(Sequence& sequence) {
  const int32_t whole_pages = sequence.length / page_tokens;
  int32_t next = whole_pages - 1;
  int32_t parent = sequence.tip;
  if (parent != kNone && cache.serial(parent) != sequence.tip_serial) {
    // The equal path was evicted. Go on from the last page of its own that is cached; what
    // follows becomes cached for as long as the sequence lives, so no page is walked twice so.
    while (next > 0 && !cache.cached(sequence.pages[next - 1])) --next;
    parent = next > 0 ? sequence.pages[next - 1] : kNone;
  }
  for (; next < whole_pages; ++next) {
    const int32_t page = sequence.pages[next];
    const int32_t equal = cache.child(parent, cache.tokens(page));
    if (equal == kNone) cache.insert(page, parent);
    parent = equal == kNone ? page : equal;
  }
  set_tip(sequence, parent);
}

PrefixTree::PrefixTree(KvPool& pool) : state_(std::make_unique<State>(pool)) {}

PrefixTree::~PrefixTree() {
  for (const auto& [id, sequence] : state_->sequences) {
    for (const int32_t page : sequence.pages) state_->pool.drop(page);
  }
  state_->cache.clear();
}

int32_t PrefixTree::match(std::span<const int32_t> tokens) const {
  return static_cast<int32_t>(state_->cache.match(tokens).size()) * state_->page_tokens;
}

InsertResult PrefixTree::insert(std::span<const int32_t> tokens) {
  State& s = *state_;
  require(tokens.size() <= static_cast<size_t>(std::numeric_limits<int32_t>::max()),
          "tokens: got {} of them, want at most 2^31-1", tokens.size());
  const auto length = static_cast<int32_t>(tokens.size());
  const int32_t whole_pages = length / s.page_tokens;
  const int32_t all_pages = whole_pages + (length % s.page_tokens != 0);

  // All that can throw comes before the first change to the sequences' pages.
  std::vector<int32_t> pages = s.cache.match(tokens);
  const auto cached_pages = static_cast<int32_t>(pages.size());
  pages.reserve(all_pages);
  s.cache.reserve(all_pages - cached_pages, pages);
  Sequence& sequence = s.sequences[s.next_sequence];

  for (const int32_t page : pages) s.hold(page);
  for (int32_t i = cached_pages; i < all_pages; ++i) {
    const int32_t page = s.take_page();
    const int32_t begin = i * s.page_tokens;
    std::copy_n(&tokens[begin], std::min(s.page_tokens, length - begin), s.cache.tokens(page));
    if (i < whole_pages) s.cache.insert(page, i == 0 ? kNone : pages.back());
    pages.push_back(page);
  }
  s.set_tip(sequence, whole_pages == 0 ? kNone : pages[whole_pages - 1]);
  sequence.pages = std::move(pages);
  sequence.length = length;
  return {s.next_sequence++, cached_pages * s.page_tokens};
}

SequenceId PrefixTree::fork(SequenceId sequence) {
  State& s = *state_;
  Sequence copy = s.find(sequence);
  const auto [entry, is_new] = s.sequences.emplace(s.next_sequence, std::move(copy));
  for (const int32_t page : entry->second.pages) s.hold(page);
  return s.next_sequence++;
}

AppendResult PrefixTree::append(SequenceId sequence, int32_t token) {
  State& s = *state_;
  Sequence& target = s.find(sequence);
  require(target.length < std::numeric_limits<int32_t>::max(),
          "sequence: got one of {} tokens, want fewer to append", target.length);
  AppendResult result{kNone, target.length % s.page_tokens, std::nullopt};
  if (result.slot == 0) {
    s.cache.reserve(1);
    target.pages.push_back(kNone);
    result.page = target.pages.back() = s.take_page();
  } else if (const int32_t last = target.pages.back(); s.pool.references(last) > 1) {
    s.cache.reserve(1);
    result.page = target.pages.back() = s.take_page();
    result.copy = PageCopy{last, result.page, result.slot};
    std::copy_n(s.cache.tokens(last), result.slot, s.cache.tokens(result.page));
    s.drop(last);
  } else {
    result.page = last;
  }
  s.cache.tokens(result.page)[result.slot] = token;
  ++target.length;
  if (target.length % s.page_tokens == 0) s.cache_whole_pages(target);
  return result;
}

void PrefixTree::release(SequenceId sequence) {
  State& s = *state_;
  const Sequence& ended = s.find(sequence);
  for (const int32_t page : ended.pages) s.drop(page);
  s.sequences.erase(sequence);
}

int32_t PrefixTree::evict(int32_t pages) {
  require(pages >= 0, "pages: got {}, want 0 or more", pages);
  int32_t count = 0;
  while (count < pages && state_->cache.evict_oldest()) ++count;
  return count;
}

std::span<const int32_t> PrefixTree::pages(SequenceId sequence) const {
  return state_->find(sequence).pages;
}

int32_t PrefixTree::length(SequenceId sequence) const { return state_->find(sequence).length; }

int32_t PrefixTree::live_sequences() const {
  return static_cast<int32_t>(state_->sequences.size());
}

int32_t PrefixTree::cached_pages() const { return state_->cache.cached_pages(); }

int64_t PrefixTree::evicted_pages() const { return state_->cache.evicted_pages(); }

}  // namespace pando
