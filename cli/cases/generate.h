// Makes cases: page tables of a forest of any shape, and the data in their pages.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "cases/case.h"
#include "cases/rng.h"

namespace pando::cases {

/// A run of tokens that follows another one.
struct Node {
  int32_t parent;  ///< index of the node before it, -1 at the start of a sequence
  int32_t tokens;
};

/// A sequence is the tokens from a root to the end of its node.
struct SequenceAt {
  int32_t node;  ///< -1: no kv at all
  int32_t q_len = 1;
};

/// Who holds which tokens. Two sequences at one node are duplicates of each other.
struct ForestShape {
  std::vector<Node> nodes;
  std::vector<SequenceAt> sequences;

  int32_t add_node(int32_t parent, int32_t tokens) {
    nodes.push_back({parent, tokens});
    return static_cast<int32_t>(nodes.size()) - 1;
  }
  void add_sequence(int32_t node, int32_t q_len = 1) { sequences.push_back({node, q_len}); }
};

/// Nodes of a forest, and sequences, at most.
inline constexpr int32_t kMostNodes = 1 << 20;

/// `nodes[l]` nodes of `tokens[l]` tokens at level l, spread evenly over the nodes of level l - 1;
/// those of the last level are the sequences. Throws kInvalidArgument on an impossible shape.
ForestShape tree_shape(const std::vector<int32_t>& nodes, const std::vector<int32_t>& tokens,
                       int32_t q_len = 1);
/// `batch` sequences with a common prefix and own suffixes. A prefix of 0 shares nothing.
ForestShape prefix_shape(int32_t batch, int32_t prefix, int32_t suffix, int32_t q_len = 1);
/// The same, with the own tokens of each sequence uniform in [suffix_min, suffix_max].
ForestShape ragged_shape(int32_t batch, int32_t prefix, int32_t suffix_min, int32_t suffix_max,
                         Rng& rng, int32_t q_len = 1);

struct TableOptions {
  int32_t page_tokens = 16;
  int32_t spare_pages = 3;    ///< pages of the KV tensors that nobody holds
  int32_t spare_entries = 0;  ///< entries after each page table that point nowhere
  bool shuffle = true;        ///< physical pages in random order
};

/// What page_tables makes of a shape.
struct ShapeSize {
  int64_t tokens = 0;    ///< of all nodes
  int64_t page_ids = 0;  ///< of all sequences
  int64_t q_rows = 0;
};
/// Takes no more time than the shape has nodes. Throws kInvalidArgument where tables would have
/// 2^31 page ids or query rows, or a sequence almost as many tokens.
ShapeSize size_of(const ForestShape& shape, const TableOptions& options);

/// Page tables as a serving engine makes them: a page is shared by all whose tokens up to the
/// page's end are the same, and copied for each where a node ends inside it.
Tables page_tables(const ForestShape& shape, const TableOptions& options, Rng& rng);

/// What the elements are.
enum class DataKind {
  kRandn,        ///< normal
  kSmall,        ///< normal / 64
  kAdversarial,  ///< normal with keys and queries x 64, duplicate and zero keys, zero queries
};
std::string_view data_kind_name(DataKind kind);
DataKind data_kind_from_name(std::string_view name);

/// What lies in every slot that no sequence holds.
enum class Unused { kZero, kNan, kInf, kNegativeInf, kMixed };

struct DataOptions {
  DataKind kind = DataKind::kRandn;
  Unused unused = Unused::kMixed;
  uint64_t seed = 0;
};

/// What the elements of fp8 KV are larger by than what they stand for, but for the scales.
inline constexpr float kFp8Sigma = 16;
/// Scales of fp8 K and V near 1 / kFp8Sigma, another one for each kv head of a few.
void set_fp8_scales(Case& problem);

/// Allocates and fills q, k and v of a case whose tables, spec, order and strides are set. The same
/// options give the same bytes, on any platform and with any number of threads.
void fill_data(Case& problem, const DataOptions& options);

/// A tree mask in which the query rows of each sequence are nodes of a random forest.
std::vector<uint64_t> random_trees(const Tables& tables, Rng& rng);
/// Normal numbers as sinks, large enough to matter beside the scores of a few hundred tokens.
std::vector<float> random_sinks(int32_t q_heads, Rng& rng);

/// Overwrites the slots that no row sees: with `invisible_too` also those that a sequence holds but
/// that lie outside the visible range of all its rows.
void fill_unused(Case& problem, Unused with, bool invisible_too = false);

}  // namespace pando::cases
