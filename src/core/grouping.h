// Head grouping: how (query row, query head) pairs are packed into the rows of one kv head.
#pragma once

#include <cstdint>

namespace pando {

/// Packed row of query row `row` (in plan order) and `member` of the group that reads one kv head.
constexpr int64_t packed_row(int64_t row, int32_t member, int32_t group) {
  return row * group + member;
}
/// Query row (in plan order) of a packed row.
constexpr int64_t row_of_packed(int64_t packed, int32_t group) { return packed / group; }
/// Query head of a packed row at kv head `kv_head`.
constexpr int32_t q_head_of_packed(int64_t packed, int32_t kv_head, int32_t group) {
  return kv_head * group + static_cast<int32_t>(packed % group);
}

}  // namespace pando
