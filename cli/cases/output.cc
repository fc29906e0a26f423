#include "cases/output.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/check.h"

namespace pando::cases {

Buffer poisoned(size_t bytes) {
  Buffer buffer(bytes + kGuardBytes);
  std::memset(buffer.data(), kPoison, buffer.size());
  return buffer;
}

bool is_poison(const std::byte* data, size_t bytes) {
  return std::all_of(data, data + bytes, [](std::byte b) { return b == std::byte{kPoison}; });
}

OutShape out_shape(const Case& problem, bool strided) {
  const AttentionSpec& spec = problem.spec;
  const int64_t gap = strided ? 8 : 0;
  const int64_t head_stride = spec.head_dim + gap;
  return {problem.tables.q_rows(), spec.q_heads, spec.head_dim,
          spec.q_heads * head_stride + 2 * gap, head_stride};
}

namespace {

/// What is not poison of all that is no output row.
std::string find_written(const Output& output, const OutShape& shape, int64_t element) {
  const std::byte* data = output.out.data();
  for (int64_t row = 0; row < shape.rows; ++row) {
    const int64_t row_begin = row * shape.row_stride;
    int64_t written = row_begin;
    for (int64_t head = 0; head <= shape.heads; ++head) {
      const int64_t next =
          head < shape.heads ? row_begin + head * shape.head_stride : row_begin + shape.row_stride;
      if (!is_poison(data + written * element, (next - written) * element)) {
        return fmt::format("attend wrote beside row {} of out", row);
      }
      written = next + shape.head_dim;
    }
  }
  if (!is_poison(data + shape.elements() * element, kGuardBytes)) {
    return "attend wrote past the end of out";
  }
  return {};
}

}  // namespace

void find_overrun(Output& output, const OutShape& shape, int64_t element_bytes,
                  const std::byte* workspace_guard) {
  output.overrun = find_written(output, shape, element_bytes);
  if (!is_poison(workspace_guard, kGuardBytes)) {
    output.overrun = "attend wrote past the end of workspace";
  }
  if (output.lse.empty()) return;
  if (!std::isnan(output.lse.back())) output.overrun = "attend wrote past the end of lse";
  output.lse.pop_back();
}

bool same_row_bits(const Case& problem, const Output& a, int32_t row_a, const Output& b,
                   int32_t row_b) {
  const AttentionSpec& spec = problem.spec;
  const int64_t element = dtype_bytes(spec.dtype);
  for (int64_t head = 0; head < spec.q_heads; ++head) {
    if (std::memcmp(a.out.data() + (row_a * a.row_stride + head * a.head_stride) * element,
                    b.out.data() + (row_b * b.row_stride + head * b.head_stride) * element,
                    spec.head_dim * element) != 0) {
      return false;
    }
  }
  return a.lse.empty() || b.lse.empty() ||
         std::memcmp(a.lse.data() + int64_t{row_a} * spec.q_heads,
                     b.lse.data() + int64_t{row_b} * spec.q_heads,
                     spec.q_heads * sizeof(float)) == 0;
}

bool same_bits(const Case& problem, const Output& a, const Output& b) {
  for (int32_t row = 0; row < problem.tables.q_rows(); ++row) {
    if (!same_row_bits(problem, a, row, b, row)) return false;
  }
  return true;
}

}  // namespace pando::cases
