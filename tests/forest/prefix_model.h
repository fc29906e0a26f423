// What a prefix tree must do, written as naively as it can be said: paths are token vectors, and
// who is in use or goes first is found by looking at everything.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <tuple>
#include <vector>

namespace pando {

using Tokens = std::vector<int32_t>;

/// Pages are numbered in the order in which they are taken and never reused, so that a number
/// tells one use of a pool page from the next.
struct PrefixModel {
  struct Sequence {
    Tokens tokens;
    std::vector<int> pages;
  };
  struct CachedPage {
    int page;
    int64_t last_in_use;
  };

  int32_t num_pages = 0;
  int32_t page_tokens = 0;
  std::map<int, Sequence> live;        // by the order in which they started
  std::map<Tokens, CachedPage> cache;  // by all tokens from the start to the end of the page
  int next_sequence = 0;
  int next_page = 0;
  int64_t now = 0;
  int64_t evicted = 0;

  /// References that the pool must count, for every page that is not free.
  std::map<int, int> references() const {
    std::map<int, int> result;
    for (const auto& [path, cached] : cache) ++result[cached.page];
    for (const auto& [id, sequence] : live) {
      for (const int page : sequence.pages) ++result[page];
    }
    return result;
  }
  int32_t free_pages() const { return num_pages - static_cast<int32_t>(references().size()); }

  bool held(int page) const {
    for (const auto& [id, sequence] : live) {
      for (const int other : sequence.pages) {
        if (other == page) return true;
      }
    }
    return false;
  }
  static bool starts_with(const Tokens& path, const Tokens& prefix) {
    return path.size() >= prefix.size() && std::equal(prefix.begin(), prefix.end(), path.begin());
  }
  /// The page or one that needs it as its prefix is held by a live sequence.
  bool in_use(const Tokens& path) const {
    for (const auto& [other, cached] : cache) {
      if (starts_with(other, path) && held(cached.page)) return true;
    }
    return false;
  }

  /// Of the pages not in use the one that was in use least recently, the deepest first.
  bool evict_one() {
    using Age = std::tuple<int64_t, int64_t>;
    std::optional<std::pair<Age, Tokens>> victim;
    for (const auto& [path, cached] : cache) {
      const Age age{cached.last_in_use, -static_cast<int64_t>(path.size())};
      if (!in_use(path) && (!victim || age < victim->first)) victim = {age, path};
    }
    if (!victim) return false;
    cache.erase(victim->second);
    ++evicted;
    return true;
  }
  bool make_room(int pages) {
    while (free_pages() < pages) {
      if (!evict_one()) return false;
    }
    return true;
  }

  Tokens path_to(const Tokens& tokens, size_t pages) const {
    return {tokens.begin(), tokens.begin() + static_cast<int64_t>(pages) * page_tokens};
  }
  void cache_whole_pages(const Sequence& sequence) {
    for (size_t i = 0; (i + 1) * page_tokens <= sequence.tokens.size(); ++i) {
      cache.try_emplace(path_to(sequence.tokens, i + 1), CachedPage{sequence.pages[i], now});
    }
  }
  void end_of_operation() {
    for (auto& [path, cached] : cache) {
      if (in_use(path)) cached.last_in_use = now;
    }
    ++now;
  }

  int32_t match(const Tokens& tokens) const {
    size_t pages = 0;
    while ((pages + 1) * page_tokens <= tokens.size() &&
           cache.contains(path_to(tokens, pages + 1))) {
      ++pages;
    }
    return static_cast<int32_t>(pages) * page_tokens;
  }

  /// The operations say whether pages sufficed; when not, the model is spoilt and to be dropped.
  bool insert(const Tokens& tokens) {
    const int32_t cached_pages = match(tokens) / page_tokens;
    const auto all_pages = static_cast<int32_t>((tokens.size() + page_tokens - 1) / page_tokens);
    Sequence& sequence = live[next_sequence++];
    for (int32_t i = 0; i < cached_pages; ++i) {
      sequence.pages.push_back(cache.at(path_to(tokens, i + 1)).page);
    }
    if (!make_room(all_pages - cached_pages)) return false;
    for (int32_t i = cached_pages; i < all_pages; ++i) sequence.pages.push_back(next_page++);
    sequence.tokens = tokens;
    cache_whole_pages(sequence);
    end_of_operation();
    return true;
  }
  void fork(int id) {
    live[next_sequence++] = Sequence(live.at(id));
    end_of_operation();
  }
  bool append(int id, int32_t token) {
    Sequence& sequence = live.at(id);
    const bool page_full = sequence.tokens.size() % page_tokens == 0;
    if (page_full || references().at(sequence.pages.back()) > 1) {
      if (!make_room(1)) return false;
      if (!page_full) sequence.pages.pop_back();
      sequence.pages.push_back(next_page++);
    }
    sequence.tokens.push_back(token);
    if (sequence.tokens.size() % page_tokens == 0) cache_whole_pages(sequence);
    end_of_operation();
    return true;
  }
  void release(int id) {
    live.erase(id);
    end_of_operation();
  }
  int32_t evict(int32_t pages) {
    int32_t count = 0;
    while (count < pages && evict_one()) ++count;
    end_of_operation();
    return count;
  }
};

}  // namespace pando
