#include "pando/quantize.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/check.h"
#include "core/convert.h"

namespace pando {
namespace {

/// From here on the nearest number would be the one that comes after the largest.
constexpr float kSaturates = kLargestE4M3 + 16;

void check_layout(const char* argument, const void* data, const KvLayout& kv) {
  require(kv.num_pages >= 0 && kv.page_tokens >= 0 && kv.kv_heads >= 1 && kv.head_dim >= 1,
          "{}: got {} pages of {} tokens x {} heads x {}, want sizes that are not negative, and at "
          "least one head of one element",
          argument, kv.num_pages, kv.page_tokens, kv.kv_heads, kv.head_dim);
  require(data != nullptr || kv.num_pages * kv.page_tokens == 0,
          "{}: got a null pointer, want memory of the host", argument);
}

void check_source(const void* from, DType dtype, const KvLayout& layout, size_t scales) {
  require(is_query_dtype(dtype), "dtype: got {}, want fp32, bf16 or fp16", dtype_name(dtype));
  check_layout("from", from, layout);
  require(scales == 1 || scales == static_cast<size_t>(layout.kv_heads),
          "scales: got {}, want 1, or {} for as many kv heads", scales, layout.kv_heads);
}

/// Calls visit(head, token's row) for every row of head_dim elements.
template <class Visit>
void for_each_row(const KvLayout& kv, Visit&& visit) {
  for (int64_t page = 0; page < kv.num_pages; ++page) {
    for (int32_t head = 0; head < kv.kv_heads; ++head) {
      for (int32_t slot = 0; slot < kv.page_tokens; ++slot) visit(page, head, slot);
    }
  }
}

}  // namespace

void fp8_scales(const void* from, DType dtype, const KvLayout& layout, std::span<float> scales) {
  check_source(from, dtype, layout, scales.size());
  std::ranges::fill(scales, 0.0f);
  for_each_row(layout, [&](int64_t page, int32_t head, int32_t slot) {
    float& largest = scales[scales.size() == 1 ? 0 : head];
    const int64_t at = layout.offset(page, head, slot);
    for (int32_t d = 0; d < layout.head_dim; ++d) {
      const float magnitude = std::fabs(load_element(from, at + d, dtype));
      if (std::isfinite(magnitude)) largest = std::max(largest, magnitude);
    }
  });
  for (float& scale : scales) {
    scale /= kLargestE4M3;
    if (scale < std::numeric_limits<float>::min()) scale = 1;
  }
}

QuantizeError quantize_fp8(const void* from, DType dtype, const KvLayout& layout,
                           std::span<const float> scales, void* to, const KvLayout& to_layout) {
  check_source(from, dtype, layout, scales.size());
  check_layout("to", to, to_layout);
  require(to_layout.num_pages == layout.num_pages && to_layout.page_tokens == layout.page_tokens &&
              to_layout.kv_heads == layout.kv_heads && to_layout.head_dim == layout.head_dim,
          "to_layout: got {} pages of {} tokens x {} heads x {}, want {} x {} x {} x {}, as layout",
          to_layout.num_pages, to_layout.page_tokens, to_layout.kv_heads, to_layout.head_dim,
          layout.num_pages, layout.page_tokens, layout.kv_heads, layout.head_dim);
  require_positive("scales", scales);
  auto* const bytes = static_cast<uint8_t*>(to);
  QuantizeError error;
  double squares = 0, element_squares = 0;
  for_each_row(layout, [&](int64_t page, int32_t head, int32_t slot) {
    const float scale = scales[scales.size() == 1 ? 0 : head];
    const int64_t at = layout.offset(page, head, slot);
    uint8_t* const row = bytes + to_layout.offset(page, head, slot);
    for (int32_t d = 0; d < layout.head_dim; ++d) {
      const float element = load_element(from, at + d, dtype);
      row[d] = float_to_e4m3(element / scale);
      ++error.elements;
      if (!std::isfinite(element)) {
        ++error.not_finite;
        continue;
      }
      error.saturated += std::fabs(element / scale) > kSaturates;
      const double lost = double{scale} * e4m3_to_float(row[d]) - element;
      error.max_abs = std::max(error.max_abs, std::fabs(lost));
      squares += lost * lost;
      element_squares += double{element} * element;
    }
  });
  const int64_t numbers = std::max<int64_t>(1, error.elements - error.not_finite);
  error.rms = std::sqrt(squares / static_cast<double>(numbers));
  error.rms_element = std::sqrt(element_squares / static_cast<double>(numbers));
  return error;
}

}  // namespace pando
