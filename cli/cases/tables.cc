// Page tables of a ForestShape.
#include <algorithm>
#include <limits>
#include <map>
#include <numeric>

#include "cases/generate.h"
#include "core/check.h"
#include "forest/scan.h"

namespace pando::cases {
namespace {

/// A node's place in its sequence.
struct Span {
  int32_t begin;
  int32_t end;
};

std::vector<Span> node_spans(const ForestShape& shape) {
  std::vector<Span> spans(shape.nodes.size());
  for (size_t i = 0; i < shape.nodes.size(); ++i) {
    const Node& node = shape.nodes[i];
    require(node.parent >= -1 && node.parent < static_cast<int32_t>(i),
            "shape: node {} has parent {}, want an earlier node or -1", i, node.parent);
    require(node.tokens >= 0, "shape: node {} has {} tokens, want 0 or more", i, node.tokens);
    const int64_t begin = node.parent < 0 ? 0 : spans[node.parent].end;
    require(begin + node.tokens <= std::numeric_limits<int32_t>::max() - 256,
            "shape: node {} ends at token {}, want less than 2^31 - 256", i, begin + node.tokens);
    spans[i] = {static_cast<int32_t>(begin), static_cast<int32_t>(begin + node.tokens)};
  }
  return spans;
}

}  // namespace

ForestShape tree_shape(const std::vector<int32_t>& nodes, const std::vector<int32_t>& tokens,
                       int32_t q_len) {
  require(!nodes.empty() && nodes.size() == tokens.size(),
          "tree: got {} levels of nodes and {} of tokens, want the same number, at least 1",
          nodes.size(), tokens.size());
  ForestShape shape;
  int32_t level_begin = 0;  // of the level before
  for (size_t level = 0; level < nodes.size(); ++level) {
    const int32_t count = nodes[level];
    const int32_t above = level == 0 ? 1 : nodes[level - 1];
    require(count >= above && tokens[level] >= 0,
            "tree: level {} has {} nodes of {} tokens, want at least {} nodes and 0 tokens", level,
            count, tokens[level], above);
    const int64_t all = static_cast<int64_t>(shape.nodes.size()) + count;
    require(all <= kMostNodes, "tree: got {} nodes in levels up to {}, want {} or less", all, level,
            kMostNodes);
    const auto next_begin = static_cast<int32_t>(shape.nodes.size());
    for (int32_t i = 0; i < count; ++i) {
      const auto parent = static_cast<int32_t>(int64_t{i} * above / count);
      shape.add_node(level == 0 ? -1 : level_begin + parent, tokens[level]);
    }
    level_begin = next_begin;
  }
  for (int32_t i = 0; i < nodes.back(); ++i) shape.add_sequence(level_begin + i, q_len);
  return shape;
}

ForestShape prefix_shape(int32_t batch, int32_t prefix, int32_t suffix, int32_t q_len) {
  Rng unused(0);
  return ragged_shape(batch, prefix, suffix, suffix, unused, q_len);
}

ForestShape ragged_shape(int32_t batch, int32_t prefix, int32_t suffix_min, int32_t suffix_max,
                         Rng& rng, int32_t q_len) {
  require(batch >= 0 && prefix >= 0 && suffix_min >= 0 && suffix_max >= suffix_min,
          "shape: got batch {}, prefix {}, suffix {}..{}, want none negative and min <= max", batch,
          prefix, suffix_min, suffix_max);
  require(batch < kMostNodes, "shape: got batch {}, want less than {}", batch, kMostNodes);
  ForestShape shape;
  const int32_t root = prefix > 0 ? shape.add_node(-1, prefix) : -1;
  for (int32_t b = 0; b < batch; ++b) {
    const auto own = suffix_min == suffix_max
                         ? suffix_min
                         : static_cast<int32_t>(rng.between(suffix_min, suffix_max));
    shape.add_sequence(own > 0 ? shape.add_node(root, own) : root, q_len);
  }
  return shape;
}

ShapeSize size_of(const ForestShape& shape, const TableOptions& options) {
  const std::vector<Span> spans = node_spans(shape);
  ShapeSize size;
  for (const Node& node : shape.nodes) size.tokens += node.tokens;
  for (const SequenceAt& sequence : shape.sequences) {
    const int32_t length = sequence.node < 0 ? 0 : spans[sequence.node].end;
    size.page_ids += pages_for(length, options.page_tokens);
    size.page_ids += options.spare_entries;
    size.q_rows += sequence.q_len;
  }
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  require(size.page_ids <= kMost, "shape: got {} page ids, want less than 2^31", size.page_ids);
  require(size.q_rows <= kMost, "shape: got {} query rows, want less than 2^31", size.q_rows);
  return size;
}

Tables page_tables(const ForestShape& shape, const TableOptions& options, Rng& rng) {
  size_of(shape, options);
  const std::vector<Span> spans = node_spans(shape);
  const int32_t page_tokens = options.page_tokens;
  Tables tables;
  tables.page_tokens = page_tokens;

  // A page belongs to the deepest node of the sequence that has a token in it.
  std::vector<std::vector<int32_t>> pages_of_node(shape.nodes.size());
  const auto page_of = [&](int32_t node, int32_t position) -> int32_t& {
    auto& pages = pages_of_node[node];
    const int32_t first = spans[node].begin / page_tokens;
    if (pages.empty()) pages.resize((spans[node].end - 1) / page_tokens - first + 1, -1);
    return pages[position - first];
  };
  int64_t used_pages = 0;
  for (const SequenceAt& sequence : shape.sequences) {
    const int32_t length = sequence.node < 0 ? 0 : spans[sequence.node].end;
    const int32_t pages = pages_for(length, page_tokens);
    const size_t first = tables.page_ids.size();
    tables.page_ids.resize(first + pages + options.spare_entries, -1);
    int32_t node = sequence.node;
    for (int32_t position = pages - 1; position >= 0; --position) {
      while (spans[node].end == spans[node].begin ||
             spans[node].begin >= (position + 1) * page_tokens) {
        node = shape.nodes[node].parent;
      }
      int32_t& page = page_of(node, position);
      if (page < 0) page = static_cast<int32_t>(used_pages++);
      tables.page_ids[first + position] = page;
    }
    tables.kv_len.push_back(length);
    tables.page_indptr.push_back(static_cast<int32_t>(tables.page_ids.size()));
    tables.q_indptr.push_back(tables.q_indptr.back() + sequence.q_len);
  }

  tables.num_pages = used_pages + options.spare_pages;
  std::vector<int32_t> physical(tables.num_pages);
  std::iota(physical.begin(), physical.end(), 0);
  if (options.shuffle) rng.shuffle(physical);
  for (int32_t& id : tables.page_ids) {
    if (id >= 0) id = physical[id];
  }
  return tables;
}

}  // namespace pando::cases
