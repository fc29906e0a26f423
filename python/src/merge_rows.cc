#include "merge_rows.h"

#include <limits>
#include <vector>

#include "core/convert.h"
#include "pando/merge.h"

namespace pando::python {
namespace {

template <DType kDtype>
void merge(const RowParts& from, const RowsView& out, float* lse) {
  const int32_t head_dim = from.head_dim;
  std::vector<float> sum(head_dim), next(head_dim);
  for (int64_t row = 0; row < from.rows; ++row) {
    for (int64_t head = 0; head < from.heads; ++head) {
      float sum_lse = -std::numeric_limits<float>::infinity();
      for (int64_t part = 0; part < from.count; ++part) {
        const int64_t at =
            part * from.part_stride + row * from.row_stride + head * from.head_stride;
        for (int32_t d = 0; d < head_dim; ++d) next[d] = load_element(from.parts, at + d, kDtype);
        merge_into(sum.data(), &sum_lse, next.data(),
                   from.lses[part * from.lse_part_stride + row * from.lse_row_stride + head],
                   head_dim);
      }
      const int64_t to = row * out.row_stride + head * out.head_stride;
      for (int32_t d = 0; d < head_dim; ++d) store_element(out.data, to + d, kDtype, sum[d]);
      if (lse != nullptr) lse[row * from.heads + head] = sum_lse;
    }
  }
}

}  // namespace

void merge_rows(const RowParts& from, const RowsView& out, float* lse) {
  switch (from.dtype) {
    case DType::kF32: return merge<DType::kF32>(from, out, lse);
    case DType::kBF16: return merge<DType::kBF16>(from, out, lse);
    case DType::kF16: return merge<DType::kF16>(from, out, lse);
    case DType::kE4M3: break;  // not of outputs
  }
}

}  // namespace pando::python
