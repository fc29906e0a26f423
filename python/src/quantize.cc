// pando_attn.quantize_fp8: K or V in host memory to fp8.
#include "pando/quantize.h"

#include "registration.h"
#include "tensors.h"

namespace pando::python {
namespace {

/// The layout of paged K or V, [num_pages, page_tokens, kv_heads, head_dim] or with heads first.
KvLayout layout_of(std::string_view argument, const ffi::TensorView& tensor, KvOrder order) {
  const int32_t heads_at = order == KvOrder::kHnd ? 1 : 2;
  const int32_t tokens_at = order == KvOrder::kHnd ? 2 : 1;
  require(tensor.ndim() == 4 && last_is_contiguous(tensor),
          "{}: got shape {}, want (num_pages, page_tokens, kv_heads, head_dim), or with layout HND "
          "heads before tokens, and head_dim contiguous",
          argument, shape_text(tensor));
  return {.num_pages = tensor.size(0),
          .page_tokens = narrow(argument, tensor.size(tokens_at)),
          .kv_heads = narrow(argument, tensor.size(heads_at)),
          .head_dim = narrow(argument, tensor.size(3)),
          .page_stride = tensor.stride(0),
          .head_stride = tensor.stride(heads_at),
          .token_stride = tensor.stride(tokens_at)};
}

/// Fills `codes`, of the shape of x, and, unless they are `given`, `scales`; returns the fields of
/// QuantizeError.
ffi::Array<ffi::Any> quantize(ffi::TensorView x, ffi::TensorView codes, ffi::TensorView scales,
                              bool given, int64_t order, int64_t dtype, bool bits) {
  const TensorRules rules{static_cast<DType>(narrow("dtype", dtype)), Backend::kCpu, 0, bits};
  check_tensor("x", x, rules);
  check_tensor("codes", codes, {DType::kE4M3, Backend::kCpu, 0});
  const auto in_scales = scales_view("scale", scales, rules);
  const KvLayout from = layout_of("x", x, static_cast<KvOrder>(order));
  const KvLayout to = layout_of("codes", codes, static_cast<KvOrder>(order));
  // The library would call them by the names of its own arguments.
  require(from.kv_heads >= 1 && from.head_dim >= 1,
          "x: got shape {}, want at least one head of one element", shape_text(x));
  require(in_scales.size() == 1 || in_scales.size() == static_cast<size_t>(from.kv_heads),
          "scale: got {}, want 1, or {} for as many kv heads", in_scales.size(), from.kv_heads);
  if (given) require_positive("scale", in_scales);
  if (!given) {
    fp8_scales(address(x), rules.dtype, from,
               {static_cast<float*>(address(scales)), in_scales.size()});
  }
  const QuantizeError error =
      quantize_fp8(address(x), rules.dtype, from, in_scales, address(codes), to);
  return {error.elements, error.saturated, error.not_finite,
          error.max_abs,  error.rms,       error.rms_element};
}

}  // namespace

void register_quantize() {
  ffi::reflection::GlobalDef().def("pando_attn.quantize_fp8", Guarded<&quantize>::call);
}

}  // namespace pando::python
