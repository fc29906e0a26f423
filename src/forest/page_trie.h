// The mutable tree behind Forest: a compressed trie over the page tables of a batch.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace pando {

/// Page tables of one batch; tables of sequences that are not in the trie are not read.
struct PageTables {
  const int32_t* page_ids;
  const int32_t* page_indptr;

  const int32_t* of(int32_t sequence) const { return page_ids + page_indptr[sequence]; }
};

/// A run of pages [page_begin, page_end) that `sequences` sequences hold at the same positions.
struct TrieNode {
  int32_t parent = -1;
  int32_t page_begin = 0;
  int32_t page_end = 0;
  int32_t first_page = -1;      ///< id of the page at page_begin: the key below the parent
  int32_t sequences = 0;        ///< that pass through or end here
  int32_t representative = -1;  ///< a sequence whose table names these pages

  // Links in the order of sequence indices, valid after relink().
  int32_t first_child = -1, last_child = -1, next_sibling = -1;
  int32_t first_own = -1, last_own = -1;  ///< sequences that end here
  bool linked = false;
};

/// Compressed trie: insert, extend and remove cost the pages and nodes that they touch.
class PageTrie {
 public:
  static constexpr int32_t kRoot = 0;

  PageTrie() { clear(0); }

  /// Empties the trie and makes room for `sequences` sequences.
  void clear(int32_t sequences);
  /// Changes the number of sequences; those dropped must have been removed before.
  void resize(int32_t sequences);
  /// Adds a sequence of `pages` pages (0: it hangs nowhere).
  void insert(const PageTables& tables, int32_t sequence, int32_t pages);
  /// Lets a sequence go on to `pages` pages, at least as many as it has. True when nodes changed.
  bool extend(const PageTables& tables, int32_t sequence, int32_t pages);
  void remove(int32_t sequence);
  /// Rebuilds the links in sequence order, picks the smallest sequence of each node as its
  /// representative, and joins nodes with a single child and no sequence of their own.
  void relink();

  int32_t pages_of(int32_t sequence) const { return ends_[sequence].pages; }
  int32_t next_own(int32_t sequence) const { return ends_[sequence].next_own; }
  const TrieNode& node(int32_t index) const { return nodes_[index]; }
  /// At least every node index in use.
  int32_t node_limit() const { return static_cast<int32_t>(nodes_.size()); }

 private:
  struct End {
    int32_t node = -1;
    int32_t pages = 0;
    int32_t next_own = -1;
  };

  int32_t new_node(int32_t parent, int32_t page_begin, int32_t page_end, int32_t first_page,
                   int32_t representative);
  int32_t split(const PageTables& tables, int32_t node, int32_t at_page);
  void descend(const PageTables& tables, int32_t sequence, int32_t from, int32_t pages);
  void link_path(int32_t sequence);
  void join_chains();

  size_t bucket_of(int32_t parent, int32_t first_page) const;
  int32_t find_child(int32_t parent, int32_t first_page) const;
  void table_insert(int32_t node);
  void table_erase(int32_t node);

  std::vector<TrieNode> nodes_;
  std::vector<int32_t> free_;
  std::vector<End> ends_;
  std::vector<int32_t> table_;  ///< open addressing: node index or -1; a power of two in size
};

}  // namespace pando
