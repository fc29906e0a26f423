// The one mask rule: which kv positions a query row sees.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "pando/attention.h"

namespace pando {

/// Query rows that a sequence may have beside a tree mask: bits of one.
inline constexpr int32_t kMostTreeRows = 64;

/// Whether a row that sees all of [begin, tree_begin), and of [tree_begin, end) the positions whose
/// bit is set, sees `position`. There are at most 64 positions from tree_begin to end.
constexpr bool sees_position(int32_t begin, int32_t end, int32_t tree_begin, uint64_t tree_mask,
                             int32_t position) {
  if (position < begin || position >= end) return false;
  return position < tree_begin || (tree_mask >> (position - tree_begin) & 1) != 0;
}

/// What one query row sees. Rows without holes have tree_begin = range.end and tree_mask = 0, also
/// those of a tree that is a chain.
struct RowMask {
  VisibleRange range;
  int32_t tree_begin;
  uint64_t tree_mask;

  constexpr bool sees(int32_t position) const {
    return sees_position(range.begin, range.end, tree_begin, tree_mask, position);
  }
  friend bool operator==(const RowMask&, const RowMask&) = default;
};

/// The bits of query row `q_row`, as holes behind a range without any.
inline RowMask tree_row_mask(const AttentionSpec& spec, int32_t q_row, int32_t q_len,
                             int32_t kv_len) {
  uint64_t mask = spec.tree_mask[q_row];
  int64_t begin = int64_t{kv_len} - q_len;
  if (begin < 0) {  // the first query tokens have no position
    mask = begin <= -kMostTreeRows ? 0 : mask >> -begin;
    begin = 0;
  }
  const int32_t chain = std::countr_one(mask);
  mask = chain == kMostTreeRows ? 0 : mask >> chain;
  const auto tree_begin = static_cast<int32_t>(begin + chain);
  const auto holes = static_cast<int32_t>(std::bit_width(mask));
  return {{0, tree_begin + holes}, tree_begin, mask};
}

/// What query row `row` of a sequence with `q_len` rows and `kv_len` tokens sees, clamped to
/// [0, kv_len). `q_row` is the row's index in the batch. The rows are the last q_len positions.
inline RowMask row_mask(const AttentionSpec& spec, int32_t q_row, int32_t row, int32_t q_len,
                        int32_t kv_len) {
  if (!spec.tree_mask.empty()) return tree_row_mask(spec, q_row, q_len, kv_len);
  int64_t begin = 0;
  int64_t end = kv_len;
  if (!spec.visible.empty()) {
    begin = spec.visible[q_row].begin;
    end = spec.visible[q_row].end;
  } else {
    const int64_t position = int64_t{kv_len} - q_len + row;
    if (spec.causal) end = position + 1;
    if (spec.window > 0) begin = position + 1 - spec.window;
  }
  end = std::clamp<int64_t>(end, 0, kv_len);
  begin = std::clamp<int64_t>(begin, 0, end);
  const auto last = static_cast<int32_t>(end);
  return {{static_cast<int32_t>(begin), last}, last, 0};
}

/// The bounds of what the row sees.
inline VisibleRange visible_range(const AttentionSpec& spec, int32_t q_row, int32_t row,
                                  int32_t q_len, int32_t kv_len) {
  return row_mask(spec, q_row, row, q_len, kv_len).range;
}

}  // namespace pando
