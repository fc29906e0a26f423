// Merging the results of several attend calls over parts of the same rows' tokens.
#pragma once

#include <cstdint>

#include "pando/attention.h"

namespace pando::python {

/// Strides in elements; head_dim is contiguous, and so are the LSEs of a row's heads.
struct RowParts {
  const void* parts;  ///< [count, rows, heads, head_dim] of dtype
  const float* lses;  ///< [count, rows, heads]
  int64_t part_stride, row_stride, head_stride;
  int64_t lse_part_stride, lse_row_stride;
  int32_t count;
  int32_t rows;
  int32_t heads;
  int32_t head_dim;
  DType dtype;
};

/// On the host, out = merge of the parts, in order; lse may be null, else contiguous [rows, heads].
void merge_rows(const RowParts& from, const RowsView& out, float* lse);

}  // namespace pando::python
