#include "forest/page_trie.h"

#include <algorithm>
#include <bit>

#include "forest/scan.h"

namespace pando {

namespace {

/// A settled trie has at most 2 nodes a sequence; an update adds at most 2 more before they join.
size_t buckets_for(int32_t sequences) {
  return std::bit_ceil(8 * size_t{static_cast<uint32_t>(sequences)} + 8);
}

}  // namespace

void PageTrie::clear(int32_t sequences) {
  nodes_.clear();
  free_.clear();
  nodes_.reserve(4 * size_t{static_cast<uint32_t>(sequences)} + 1);
  nodes_.emplace_back();
  ends_.assign(sequences, End{});
  table_.assign(buckets_for(sequences), -1);
}

void PageTrie::resize(int32_t sequences) {
  ends_.resize(sequences);
  const size_t buckets = buckets_for(sequences);
  if (buckets <= table_.size()) return;
  table_.assign(buckets, -1);
  for (int32_t i = 1; i < node_limit(); ++i) {
    if (nodes_[i].sequences > 0) table_insert(i);
  }
}

void PageTrie::insert(const PageTables& tables, int32_t sequence, int32_t pages) {
  descend(tables, sequence, kRoot, pages);
}

bool PageTrie::extend(const PageTables& tables, int32_t sequence, int32_t pages) {
  End& end = ends_[sequence];
  if (end.pages == pages) return false;
  if (end.node > kRoot && nodes_[end.node].sequences == 1) {  // its own leaf grows in place
    nodes_[end.node].page_end = pages;
    end.pages = pages;
    return false;
  }
  descend(tables, sequence, std::max(end.node, kRoot), pages);
  return true;
}

/// Walks and builds the path of `sequence` from the end of node `from`, counting it in below.
void PageTrie::descend(const PageTables& tables, int32_t sequence, int32_t from, int32_t pages) {
  const int32_t* ids = tables.of(sequence);
  int32_t node = from;
  int32_t at = nodes_[from].page_end;
  while (at < pages) {
    int32_t child = find_child(node, ids[at]);
    if (child < 0) {
      child = new_node(node, at, pages, ids[at], sequence);
      at = pages;
    } else {
      const int32_t* theirs = tables.of(nodes_[child].representative);
      const int32_t limit = std::min(nodes_[child].page_end, pages);
      at += static_cast<int32_t>(common_prefix(ids + at, theirs + at, limit - at));
      if (at < nodes_[child].page_end) child = split(tables, child, at);
    }
    ++nodes_[child].sequences;
    node = child;
  }
  ends_[sequence] = {node, pages, -1};
}

int32_t PageTrie::new_node(int32_t parent, int32_t page_begin, int32_t page_end, int32_t first_page,
                           int32_t representative) {
  int32_t index;
  if (free_.empty()) {
    index = node_limit();
    nodes_.emplace_back();
  } else {
    index = free_.back();
    free_.pop_back();
  }
  nodes_[index] = TrieNode{.parent = parent,
                           .page_begin = page_begin,
                           .page_end = page_end,
                           .first_page = first_page,
                           .representative = representative};
  table_insert(index);
  return index;
}

/// Cuts `node` at page `at_page`: a new node takes the upper part, `node` keeps the lower one with
/// all that hangs from it. Returns the upper part.
int32_t PageTrie::split(const PageTables& tables, int32_t node, int32_t at_page) {
  const TrieNode before = nodes_[node];
  table_erase(node);
  const int32_t upper =
      new_node(before.parent, before.page_begin, at_page, before.first_page, before.representative);
  nodes_[upper].sequences = before.sequences;
  nodes_[node].parent = upper;
  nodes_[node].page_begin = at_page;
  nodes_[node].first_page = tables.of(before.representative)[at_page];
  table_insert(node);
  return upper;
}

void PageTrie::remove(int32_t sequence) {
  for (int32_t node = ends_[sequence].node; node > kRoot;) {
    const int32_t parent = nodes_[node].parent;
    if (--nodes_[node].sequences == 0) {
      table_erase(node);
      free_.push_back(node);
    }
    node = parent;
  }
  ends_[sequence] = End{};
}

void PageTrie::relink() {
  for (TrieNode& node : nodes_) {
    node.first_child = node.last_child = node.next_sibling = -1;
    node.first_own = node.last_own = -1;
    node.linked = false;
  }
  nodes_[kRoot].linked = true;
  for (int32_t sequence = 0; sequence < static_cast<int32_t>(ends_.size()); ++sequence) {
    link_path(sequence);
  }
  join_chains();
}

/// Hangs `sequence` on its node, and on its way up every node that no earlier sequence reached.
void PageTrie::link_path(int32_t sequence) {
  End& end = ends_[sequence];
  end.next_own = -1;
  if (end.node <= kRoot) return;
  TrieNode& last = nodes_[end.node];
  if (last.first_own < 0) {
    last.first_own = sequence;
  } else {
    ends_[last.last_own].next_own = sequence;
  }
  last.last_own = sequence;

  for (int32_t index = end.node; !nodes_[index].linked;) {
    TrieNode& node = nodes_[index];
    node.linked = true;
    node.representative = sequence;
    TrieNode& parent = nodes_[node.parent];
    if (parent.first_child < 0) {
      parent.first_child = index;
    } else {
      nodes_[parent.last_child].next_sibling = index;
    }
    parent.last_child = index;
    index = node.parent;
  }
}

/// A node with one child and no sequence of its own is the upper part of one run: the child's
/// contents move into it, so that its place among its siblings stays.
void PageTrie::join_chains() {
  for (int32_t index = 1; index < node_limit(); ++index) {
    while (nodes_[index].linked && nodes_[index].first_own < 0 &&
           nodes_[index].first_child == nodes_[index].last_child) {
      TrieNode& node = nodes_[index];
      const int32_t gone = node.first_child;
      const TrieNode child = nodes_[gone];
      for (int32_t c = child.first_child; c >= 0; c = nodes_[c].next_sibling) {
        table_erase(c);
        nodes_[c].parent = index;
        table_insert(c);
      }
      for (int32_t s = child.first_own; s >= 0; s = ends_[s].next_own) ends_[s].node = index;
      node.page_end = child.page_end;
      node.first_child = child.first_child;
      node.last_child = child.last_child;
      node.first_own = child.first_own;
      node.last_own = child.last_own;
      table_erase(gone);
      nodes_[gone].linked = false;
      nodes_[gone].sequences = 0;
      free_.push_back(gone);
    }
  }
}

size_t PageTrie::bucket_of(int32_t parent, int32_t first_page) const {
  const uint64_t key =
      (uint64_t{static_cast<uint32_t>(parent)} << 32) | static_cast<uint32_t>(first_page);
  const int shift = std::countl_zero(table_.size()) + 1;
  return (key * 0x9e3779b97f4a7c15u) >> shift;
}

int32_t PageTrie::find_child(int32_t parent, int32_t first_page) const {
  const size_t mask = table_.size() - 1;
  for (size_t b = bucket_of(parent, first_page);; b = (b + 1) & mask) {
    const int32_t node = table_[b];
    if (node < 0) return -1;
    if (nodes_[node].parent == parent && nodes_[node].first_page == first_page) return node;
  }
}

void PageTrie::table_insert(int32_t node) {
  const size_t mask = table_.size() - 1;
  size_t b = bucket_of(nodes_[node].parent, nodes_[node].first_page);
  while (table_[b] >= 0) b = (b + 1) & mask;
  table_[b] = node;
}

void PageTrie::table_erase(int32_t node) {
  const size_t mask = table_.size() - 1;
  size_t hole = bucket_of(nodes_[node].parent, nodes_[node].first_page);
  while (table_[hole] != node) hole = (hole + 1) & mask;
  for (size_t b = (hole + 1) & mask; table_[b] >= 0; b = (b + 1) & mask) {
    // An entry may fill the hole unless its own bucket lies after the hole.
    const TrieNode& moved = nodes_[table_[b]];
    const size_t home = bucket_of(moved.parent, moved.first_page);
    if (((b - home) & mask) >= ((b - hole) & mask)) {
      table_[hole] = table_[b];
      hole = b;
    }
  }
  table_[hole] = -1;
}

}  // namespace pando
