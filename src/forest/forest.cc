#include "pando/forest.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <vector>

#include "core/check.h"
#include "forest/page_trie.h"
#include "forest/scan.h"

namespace pando {
namespace {

void check_indptr(std::span<const int32_t> indptr, const char* name, size_t want) {
  require(indptr.size() == want, "{}: got {} entries, want {} (one more than kv_len)", name,
          indptr.size(), want);
  require(indptr[0] >= 0, "{}[0]: got {}, want 0 or more", name, indptr[0]);
  for (size_t i = 1; i < want; ++i) {
    require(indptr[i] >= indptr[i - 1], "{}[{}]: got {} after {}, want no decrease", name, i,
            indptr[i], indptr[i - 1]);
  }
}

void check_shape(const BatchView& batch) {
  require(batch.page_tokens >= 1 && batch.page_tokens <= 256 &&
              std::has_single_bit(static_cast<uint32_t>(batch.page_tokens)),
          "page_tokens: got {}, want a power of two in [1, 256]", batch.page_tokens);
  require(batch.kv_len.size() < static_cast<size_t>(std::numeric_limits<int32_t>::max()),
          "kv_len: got {} sequences, want fewer than 2^31 - 1", batch.kv_len.size());
  const size_t sequences = batch.kv_len.size();
  check_indptr(batch.q_indptr, "q_indptr", sequences + 1);
  require(batch.q_indptr[0] == 0, "q_indptr[0]: got {}, want 0", batch.q_indptr[0]);
  check_indptr(batch.page_indptr, "page_indptr", sequences + 1);
  const int32_t table_end = batch.page_indptr.back();
  require(batch.page_ids.size() >= static_cast<size_t>(table_end),
          "page_ids: got {} ids, want page_indptr's last entry, {}, or more", batch.page_ids.size(),
          table_end);
  for (size_t b = 0; b < sequences; ++b) {
    const int64_t pages = batch.page_indptr[b + 1] - batch.page_indptr[b];
    require(batch.kv_len[b] >= 0, "kv_len[{}]: got {}, want 0 or more", b, batch.kv_len[b]);
    require(batch.kv_len[b] <= pages * batch.page_tokens,
            "kv_len[{}]: got {} tokens, want at most {} ({} pages of {} tokens)", b,
            batch.kv_len[b], pages * batch.page_tokens, pages, batch.page_tokens);
  }
}

/// Largest id among pages [from, to) of a sequence; refuses negative ones.
int32_t check_ids(const BatchView& batch, int32_t sequence, int32_t from, int32_t to) {
  const int32_t* ids = batch.page_ids.data() + batch.page_indptr[sequence];
  const uint32_t top = max_unsigned(ids + from, to - from);
  if (top > static_cast<uint32_t>(std::numeric_limits<int32_t>::max())) [[unlikely]] {
    const int32_t* bad = std::find_if(ids + from, ids + to, [](int32_t id) { return id < 0; });
    fail(ErrorCode::kInvalidArgument, "page_ids[{}]: got {} (sequence {}, page {}), want 0 or more",
         batch.page_indptr[sequence] + (bad - ids), *bad, sequence, bad - ids);
  }
  return static_cast<int32_t>(top);
}

}  // namespace

struct Forest::State {
  PageTrie trie;
  std::vector<Segment> segments;
  std::vector<int32_t> order;
  std::vector<int32_t> q_indptr{0}, kv_len, page_indptr{0};
  int32_t page_tokens = 1;
  std::vector<int32_t> tops;       ///< by sequence: its largest page id, -1 when it has no pages
  int32_t max_page_id = -1;        ///< the largest of them
  std::vector<int32_t> next_tops;  ///< of a batch that may yet be refused
  std::vector<std::pair<int32_t, int32_t>> stack;  ///< (node, parent segment) yet to visit
  std::vector<uint8_t> listed;                     ///< by sequence: named in `changed`

  void copy_batch(const BatchView& batch) {
    q_indptr.assign(batch.q_indptr.begin(), batch.q_indptr.end());
    kv_len.assign(batch.kv_len.begin(), batch.kv_len.end());
    page_indptr.assign(batch.page_indptr.begin(), batch.page_indptr.end());
    page_tokens = batch.page_tokens;
  }

  void discover(const BatchView& batch);
  void update(const BatchView& batch, std::span<const int32_t> changed);
  void check_update(const BatchView& batch, std::span<const int32_t> changed);
  void take_tops();
  void flatten();
  void measure_tokens();
};

void Forest::State::discover(const BatchView& batch) {
  check_shape(batch);
  next_tops.assign(batch.sequences(), -1);
  for (int32_t b = 0; b < batch.sequences(); ++b) {
    const int32_t pages = pages_for(batch.kv_len[b], batch.page_tokens);
    if (pages > 0) next_tops[b] = check_ids(batch, b, 0, pages);
  }
  copy_batch(batch);
  take_tops();
  trie.clear(batch.sequences());
  const PageTables tables{batch.page_ids.data(), page_indptr.data()};
  for (int32_t b = 0; b < batch.sequences(); ++b) {
    trie.insert(tables, b, pages_for(kv_len[b], page_tokens));
  }
  flatten();
}

void Forest::State::take_tops() {
  tops.swap(next_tops);
  max_page_id = -1;
  for (const int32_t top : tops) max_page_id = std::max(max_page_id, top);
}

/// Everything that update may refuse, before anything changes but next_tops.
void Forest::State::check_update(const BatchView& batch, std::span<const int32_t> changed) {
  check_shape(batch);
  require(batch.page_tokens == page_tokens || kv_len.empty(),
          "page_tokens: got {}, want {} as before (discover again to change it)", batch.page_tokens,
          page_tokens);
  const auto before = static_cast<int32_t>(kv_len.size());
  const int32_t now = batch.sequences();
  for (const int32_t b : changed) {
    require(b >= 0 && b < now, "changed: got sequence {}, want one in [0, {})", b, now);
  }
  listed.assign(now, 0);
  for (const int32_t b : changed) listed[b] = 1;
  std::fill(listed.begin() + std::min(before, now), listed.end(), uint8_t{1});

  next_tops.assign(now, -1);
  for (int32_t b = 0; b < now; ++b) {
    const int32_t pages = pages_for(batch.kv_len[b], batch.page_tokens);
    const int32_t known = listed[b] ? 0 : trie.pages_of(b);
    if (!listed[b]) {
      require(batch.kv_len[b] >= kv_len[b],
              "kv_len[{}]: got {} tokens, had {}; want no fewer, or the sequence in changed", b,
              batch.kv_len[b], kv_len[b]);
      next_tops[b] = tops[b];
    }
    if (pages > known) next_tops[b] = std::max(next_tops[b], check_ids(batch, b, known, pages));
  }
}

void Forest::State::update(const BatchView& batch, std::span<const int32_t> changed) {
  check_update(batch, changed);
  const auto before = static_cast<int32_t>(kv_len.size());
  const int32_t now = batch.sequences();
  bool moved = before != now;
  for (int32_t b = now; b < before; ++b) trie.remove(b);
  for (int32_t b = 0; b < std::min(before, now); ++b) {
    if (listed[b]) {
      trie.remove(b);
      moved = true;
    }
  }
  copy_batch(batch);
  take_tops();
  if (moved) {
    trie.resize(now);
    trie.relink();  // representatives must be sequences whose tables still hold
  }
  const PageTables tables{batch.page_ids.data(), page_indptr.data()};
  for (int32_t b = 0; b < now; ++b) {
    const int32_t pages = pages_for(kv_len[b], page_tokens);
    if (listed[b]) {
      trie.insert(tables, b, pages);
    } else {
      moved |= trie.extend(tables, b, pages);
    }
  }
  if (moved) {
    flatten();
  } else {
    measure_tokens();
  }
}

/// Segments in preorder, and the order of sequences that makes them contiguous under each.
void Forest::State::flatten() {
  trie.relink();
  segments.clear();
  order.clear();
  stack.clear();
  const auto push_children = [&](const TrieNode& node, int32_t segment) {
    const size_t first = stack.size();
    for (int32_t c = node.first_child; c >= 0; c = trie.node(c).next_sibling) {
      stack.emplace_back(c, segment);
    }
    std::reverse(stack.begin() + static_cast<ptrdiff_t>(first), stack.end());
  };
  push_children(trie.node(PageTrie::kRoot), -1);
  while (!stack.empty()) {
    const auto [index, parent] = stack.back();
    stack.pop_back();
    const TrieNode& node = trie.node(index);
    const auto begin = static_cast<int32_t>(order.size());
    for (int32_t s = node.first_own; s >= 0; s = trie.next_own(s)) order.push_back(s);
    segments.push_back({.parent = parent,
                        .depth = parent < 0 ? 0 : segments[parent].depth + 1,
                        .token_begin = node.page_begin * page_tokens,
                        .token_end = 0,
                        .seq_begin = begin,
                        .seq_own_end = static_cast<int32_t>(order.size()),
                        .seq_end = begin + node.sequences,
                        .sequence = node.representative});
    push_children(node, static_cast<int32_t>(segments.size()) - 1);
  }
  for (int32_t b = 0; b < static_cast<int32_t>(kv_len.size()); ++b) {
    if (kv_len[b] == 0) order.push_back(b);
  }
  measure_tokens();
}

/// Token ends: a segment that goes on below is whole, a last one ends with its longest sequence.
void Forest::State::measure_tokens() {
  for (size_t i = 0; i < segments.size(); ++i) {
    Segment& segment = segments[i];
    if (segment.seq_own_end < segment.seq_end) {
      segment.token_end = segments[i + 1].token_begin;  // the next in preorder is its child
      continue;
    }
    segment.token_end = 0;
    for (int32_t s = segment.seq_begin; s < segment.seq_end; ++s) {
      segment.token_end = std::max(segment.token_end, kv_len[order[s]]);
    }
  }
}

Forest::Forest() : state_(std::make_unique<State>()) {}
Forest::~Forest() = default;
Forest::Forest(Forest&&) noexcept = default;
Forest& Forest::operator=(Forest&&) noexcept = default;

void Forest::discover(const BatchView& batch) { state_->discover(batch); }

void Forest::update(const BatchView& batch, std::span<const int32_t> changed) {
  state_->update(batch, changed);
}

std::span<const Segment> Forest::segments() const { return state_->segments; }
std::span<const int32_t> Forest::order() const { return state_->order; }
std::span<const int32_t> Forest::q_indptr() const { return state_->q_indptr; }
std::span<const int32_t> Forest::kv_len() const { return state_->kv_len; }
std::span<const int32_t> Forest::page_indptr() const { return state_->page_indptr; }
int32_t Forest::sequences() const { return static_cast<int32_t>(state_->kv_len.size()); }
int32_t Forest::q_rows() const { return state_->q_indptr.back(); }
int32_t Forest::page_tokens() const { return state_->page_tokens; }
int32_t Forest::max_page_id() const { return state_->max_page_id; }

Forest discover(const BatchView& batch) {
  Forest forest;
  forest.discover(batch);
  return forest;
}

}  // namespace pando
