// From K or V of fp32, bf16 or fp16 to fp8, with the scales that attend wants.
#pragma once

#include <cstdint>
#include <span>

#include "pando/attention.h"

namespace pando {

/// What quantising lost, over all elements but those that are no finite numbers.
struct QuantizeError {
  int64_t elements = 0;
  int64_t saturated = 0;   ///< beyond 448 scales, which became that
  int64_t not_finite = 0;  ///< NaN, which stay so, and infinities, which became +-448 scales
  double max_abs = 0;      ///< largest |scale * fp8 - element|
  double rms = 0;          ///< root of the mean square of scale * fp8 - element
  double rms_element = 0;  ///< of the elements themselves, to hold the other against
};

/// Fills `scales`, [1] or [kv_heads], with the smallest for which nothing saturates: the largest
/// finite |element| of the tensor or of each head, over 448, where it is a normal number; else 1.
///
/// `from` is paged K or V of `dtype`, fp32, bf16 or fp16, in host memory, where `layout` says;
/// every slot of every page counts, so what no sequence holds must hold numbers of the same size.
/// Throws kInvalidArgument naming the argument.
void fp8_scales(const void* from, DType dtype, const KvLayout& layout, std::span<float> scales);

/// Rounds `from` / scale to the nearest fp8, ties to even; what is too large saturates. The
/// elements go to `to`, in host memory, where `to_layout` says: of the same sizes as `layout`, with
/// strides of its own. Throws kInvalidArgument naming the argument, before anything is written.
QuantizeError quantize_fp8(const void* from, DType dtype, const KvLayout& layout,
                           std::span<const float> scales, void* to, const KvLayout& to_layout);

}  // namespace pando
