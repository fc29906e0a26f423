// The one mask rule: which kv positions a query row sees.
#pragma once

#include <algorithm>
#include <cstdint>

#include "pando/attention.h"

namespace pando {

/// Range that query row `row` of a sequence with `q_len` rows and `kv_len` tokens sees, clamped to
/// [0, kv_len). `q_row` is the row's index in the batch. The rows are the last q_len positions.
inline VisibleRange visible_range(const AttentionSpec& spec, int32_t q_row, int32_t row,
                                  int32_t q_len, int32_t kv_len) {
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
  return {static_cast<int32_t>(begin), static_cast<int32_t>(end)};
}

}  // namespace pando
