// Page tables as literals that show their shape, and a naive forest to compare with.
#pragma once

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdint>
#include <string>
#include <vector>

#include "pando/forest.h"

namespace pando::testing {

/// A batch that owns its arrays. Each row is one sequence's page ids.
struct OwnedBatch {
  std::vector<std::vector<int32_t>> pages;
  std::vector<int32_t> kv_len;
  std::vector<int32_t> q_len;  ///< 1 for every sequence when empty
  int32_t page_tokens = 4;

  std::vector<int32_t> q_indptr, page_indptr, page_ids;

  /// Full pages, one query row each.
  static OwnedBatch of(std::vector<std::vector<int32_t>> pages, int32_t page_tokens = 4) {
    OwnedBatch batch;
    batch.page_tokens = page_tokens;
    for (const auto& row : pages) {
      batch.kv_len.push_back(static_cast<int32_t>(row.size()) * page_tokens);
    }
    batch.pages = std::move(pages);
    return batch;
  }

  /// Rebuilds the flat arrays; the view is valid until the next call or change.
  BatchView view() {
    q_indptr.assign(1, 0);
    page_indptr.assign(1, 0);
    page_ids.clear();
    for (size_t b = 0; b < pages.size(); ++b) {
      q_indptr.push_back(q_indptr.back() + (q_len.empty() ? 1 : q_len[b]));
      page_ids.insert(page_ids.end(), pages[b].begin(), pages[b].end());
      page_indptr.push_back(static_cast<int32_t>(page_ids.size()));
    }
    return {q_indptr, kv_len, page_indptr, page_ids, page_tokens};
  }
};

/// Segments and order straight from the definition, in quadratic time.
struct NaiveForest {
  std::vector<Segment> segments;
  std::vector<int32_t> order;

  explicit NaiveForest(const OwnedBatch& batch) : batch_(batch) {
    std::vector<int32_t> all;
    for (int32_t b = 0; b < static_cast<int32_t>(batch.pages.size()); ++b) {
      if (batch.kv_len[b] > 0) all.push_back(b);
    }
    add_children(all, 0, -1);
    for (int32_t b = 0; b < static_cast<int32_t>(batch.pages.size()); ++b) {
      if (batch.kv_len[b] == 0) order.push_back(b);
    }
  }

 private:
  int32_t pages_of(int32_t b) const {
    return (batch_.kv_len[b] + batch_.page_tokens - 1) / batch_.page_tokens;
  }

  void add_children(std::vector<int32_t> members, int32_t at, int32_t parent) {
    while (!members.empty()) {
      const int32_t page = batch_.pages[members[0]][at];
      std::vector<int32_t> same, rest;
      for (const int32_t b : members) (batch_.pages[b][at] == page ? same : rest).push_back(b);
      add_segment(same, at, parent);
      members = rest;
    }
  }

  void add_segment(const std::vector<int32_t>& members, int32_t at, int32_t parent) {
    int32_t end = at + 1;
    const auto goes_on = [&] {
      for (const int32_t b : members) {
        if (pages_of(b) == end || batch_.pages[b][end] != batch_.pages[members[0]][end]) {
          return false;
        }
      }
      return true;
    };
    while (goes_on()) ++end;
    Segment segment{.parent = parent,
                    .depth = parent < 0 ? 0 : segments[parent].depth + 1,
                    .token_begin = at * batch_.page_tokens,
                    .seq_begin = static_cast<int32_t>(order.size()),
                    .sequence = members[0]};
    std::vector<int32_t> below;
    for (const int32_t b : members) {
      if (pages_of(b) > end) {
        below.push_back(b);
        segment.token_end = end * batch_.page_tokens;
      } else {
        order.push_back(b);
        segment.token_end = std::max(segment.token_end, batch_.kv_len[b]);
      }
    }
    segment.seq_own_end = static_cast<int32_t>(order.size());
    segment.seq_end = segment.seq_begin + static_cast<int32_t>(members.size());
    segments.push_back(segment);
    add_children(below, end, static_cast<int32_t>(segments.size()) - 1);
  }

  const OwnedBatch& batch_;
};

inline std::string to_text(std::span<const Segment> segments, std::span<const int32_t> order) {
  std::string text;
  for (const Segment& s : segments) {
    const auto own = order.subspan(s.seq_begin, s.seq_own_end - s.seq_begin);
    text += fmt::format("{:{}}[{},{}) x{} {{{}}} by {}\n", "", 2 * s.depth, s.token_begin,
                        s.token_end, s.sequences(), fmt::join(own, " "), s.sequence);
  }
  return text + fmt::format("order: {}\n", fmt::join(order, " "));
}

inline std::string to_text(const Forest& forest) {
  return to_text(forest.segments(), forest.order());
}
inline std::string to_text(const NaiveForest& forest) {
  return to_text(forest.segments, forest.order);
}

}  // namespace pando::testing
