#include "tensors.h"

#include "plan/variants.h"

namespace pando::python {
namespace {

std::string dtype_text(DLDataType dtype) {
  switch (dtype.code) {
    case kDLInt: return fmt::format("int{}", dtype.bits);
    case kDLUInt: return fmt::format("uint{}", dtype.bits);
    case kDLFloat: return fmt::format("float{}", dtype.bits);
    case kDLBfloat: return fmt::format("bfloat{}", dtype.bits);
    case kDLBool: return "bool";
    case kDLFloat8_e4m3fn: return "float8_e4m3fn";
    case kDLFloat8_e5m2: return "float8_e5m2";
    case kDLComplex: return fmt::format("complex{}", dtype.bits);
    default: return fmt::format("DLPack code {} of {} bits", dtype.code, dtype.bits);
  }
}

std::string device_text(DLDevice device) {
  switch (device.device_type) {
    case kDLCPU:
    case kDLCUDAHost: return "the host";
    case kDLCUDA:
    case kDLCUDAManaged: return fmt::format("CUDA device {}", device.device_id);
    default: return fmt::format("a device of DLPack type {}", static_cast<int>(device.device_type));
  }
}

bool on_host(DLDevice device) {
  return device.device_type == kDLCPU || device.device_type == kDLCUDAHost;
}

DLDataType wanted(DType dtype) {
  switch (dtype) {
    case DType::kF32: return {kDLFloat, 32, 1};
    case DType::kF16: return {kDLFloat, 16, 1};
    case DType::kE4M3: return {kDLFloat8_e4m3fn, 8, 1};
    case DType::kBF16: break;
  }
  return {kDLBfloat, 16, 1};
}

bool same(DLDataType a, DLDataType b) {
  return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}

/// Product of the first `count` sizes: rows, be they counted in one dimension or in two.
int64_t leading(const ffi::TensorView& tensor, int32_t count) {
  int64_t product = 1;
  for (int32_t i = 0; i < count; ++i) product *= tensor.size(i);
  return product;
}

void check_last_stride(std::string_view argument, const ffi::TensorView& tensor) {
  require(last_is_contiguous(tensor),
          "{}: got a stride of {} in the last dimension, want head_dim contiguous", argument,
          tensor.stride(-1));
}

/// Whether an element has another before or after it in dimension `i`.
bool steps(const ffi::TensorView& tensor, int32_t i) {
  return tensor.size(i) > 1 && tensor.numel() > 0;
}

/// The stride of dimension `i`, or `contiguous` where no step is ever taken.
int64_t stride(const ffi::TensorView& tensor, int32_t i, int64_t contiguous) {
  return steps(tensor, i) ? tensor.stride(i) : contiguous;
}

std::string wanted_kv(KvOrder order, const PlanHeader& plan) {
  switch (order) {
    case KvOrder::kHnd:
      return fmt::format("(num_pages, {}, {}, {}): layout HND", plan.kv_heads, plan.page_tokens,
                         plan.head_dim);
    case KvOrder::kPlain:
      return fmt::format("(sequences, tokens, {}, {})", plan.kv_heads, plan.head_dim);
    case KvOrder::kNhd: break;
  }
  return fmt::format("(num_pages, {}, {}, {}): layout NHD", plan.page_tokens, plan.kv_heads,
                     plan.head_dim);
}

/// Contiguous memory of the host whose elements are integers of a kind.
template <class T>
std::span<T> integers(std::string_view argument, const ffi::TensorView& tensor, DLDataType wanted) {
  if (!on_host(tensor.device())) {
    fail(ErrorCode::kTypeMismatch, "{}: got memory of {}, want that of the host", argument,
         device_text(tensor.device()));
  }
  if (!same(tensor.dtype(), wanted)) {
    fail(ErrorCode::kTypeMismatch, "{}: got dtype {}, want {}", argument,
         dtype_text(tensor.dtype()), dtype_text(wanted));
  }
  require(tensor.IsContiguous(), "{}: got strided memory, want it contiguous", argument);
  return {static_cast<T*>(address(tensor)), static_cast<size_t>(tensor.numel())};
}

std::span<int32_t> ints(std::string_view argument, const ffi::TensorView& tensor) {
  return integers<int32_t>(argument, tensor, {kDLInt, 32, 1});
}

}  // namespace

void* address(const ffi::TensorView& tensor) {
  return static_cast<std::byte*>(tensor.data_ptr()) + tensor.byte_offset();
}

bool last_is_contiguous(const ffi::TensorView& tensor) {
  return tensor.size(-1) <= 1 || tensor.stride(-1) == 1 || tensor.numel() == 0;
}

std::string shape_text(const ffi::TensorView& tensor) {
  std::string text = "(";
  for (int32_t i = 0; i < tensor.ndim(); ++i) {
    text += fmt::format("{}{}", i == 0 ? "" : ", ", tensor.size(i));
  }
  return text + (tensor.ndim() == 1 ? ",)" : ")");
}

std::span<const int32_t> host_ints(std::string_view argument, const ffi::TensorView& tensor) {
  return ints(argument, tensor);
}
std::span<const uint64_t> host_masks(std::string_view argument, const ffi::TensorView& tensor) {
  return integers<uint64_t>(argument, tensor, {kDLUInt, 64, 1});
}
std::span<int32_t> writable_host_ints(std::string_view argument, const ffi::TensorView& tensor) {
  return ints(argument, tensor);
}

void check_tensor(std::string_view argument, const ffi::TensorView& tensor,
                  const TensorRules& rules) {
  const DLDevice device = tensor.device();
  const bool device_ok = rules.backend == Backend::kCpu ? on_host(device)
                                                        : device.device_type == kDLCUDAManaged ||
                                                              (device.device_type == kDLCUDA &&
                                                               device.device_id == rules.device_id);
  if (!device_ok) {
    fail(ErrorCode::kTypeMismatch, "{}: got memory of {}, want that of {}, the plan's device",
         argument, device_text(device),
         rules.backend == Backend::kCpu ? std::string("the host")
                                        : fmt::format("CUDA device {}", rules.device_id));
  }
  // Few frameworks tell fp8 to others: it may always come as bytes.
  const bool is_bits =
      (rules.bits && rules.dtype == DType::kBF16 && same(tensor.dtype(), {kDLUInt, 16, 1})) ||
      (rules.dtype == DType::kE4M3 && same(tensor.dtype(), {kDLUInt, 8, 1}));
  if (!is_bits && !same(tensor.dtype(), wanted(rules.dtype))) {
    fail(ErrorCode::kTypeMismatch, "{}: got dtype {}, want {}{}", argument,
         dtype_text(tensor.dtype()), dtype_text(wanted(rules.dtype)),
         rules.of_plan ? ", the plan's" : "");
  }
}

RowsView rows_view(std::string_view argument, const ffi::TensorView& tensor, int32_t rows,
                   int32_t heads, int32_t head_dim, const TensorRules& rules) {
  check_tensor(argument, tensor, rules);
  const int32_t n = tensor.ndim();
  const bool by_sequence = n == 4;
  const bool ok = (n == 3 || by_sequence) && tensor.size(n - 2) == heads &&
                  tensor.size(n - 1) == head_dim && leading(tensor, n - 2) == rows;
  require(ok, "{}: got shape {}, want ({}, {}, {}): q_rows, q_heads, head_dim", argument,
          shape_text(tensor), rows, heads, head_dim);
  check_last_stride(argument, tensor);
  const int64_t head_stride = stride(tensor, n - 2, head_dim);
  int64_t row_stride = stride(tensor, n - 3, heads * head_stride);
  if (by_sequence && tensor.size(1) <= 1) row_stride = stride(tensor, 0, row_stride);
  require(!by_sequence || !steps(tensor, 0) || !steps(tensor, 1) ||
              tensor.stride(0) == tensor.size(1) * row_stride,
          "{}: got a stride of {} between sequences of {} rows that are {} apart, want them "
          "contiguous",
          argument, tensor.stride(0), tensor.size(1), row_stride);
  // For the library, two strides of 0 mean contiguous.
  require(head_stride != 0 && row_stride != 0,
          "{}: got a stride of 0, want rows and heads of their own", argument);
  return {address(tensor), row_stride, head_stride};
}

KvView kv_view(const ffi::TensorView& k, const ffi::TensorView& v, KvOrder order,
               const KvNames& names, const PlanHeader& plan, TensorRules rules) {
  rules.dtype = plan.kv_dtype;
  const int32_t heads_at = order == KvOrder::kHnd ? 1 : 2;
  const int32_t tokens_at = order == KvOrder::kHnd ? 2 : 1;
  const bool plain = order == KvOrder::kPlain;
  for (const auto& [name, tensor] : {std::pair{names.k, k}, std::pair{names.v, v}}) {
    check_tensor(name, tensor, rules);
    const bool tokens_ok =
        tensor.ndim() == 4 && (plain ? tensor.size(tokens_at) % plan.page_tokens == 0
                                     : tensor.size(tokens_at) == plan.page_tokens);
    require(tokens_ok && tensor.size(heads_at) == plan.kv_heads && tensor.size(3) == plan.head_dim,
            "{}: got shape {}, want {}", name, shape_text(tensor), wanted_kv(order, plan));
    check_last_stride(name, tensor);
  }
  for (int32_t i = 0; i < 3; ++i) {
    require(k.size(i) == v.size(i), "{}: got shape {}, want {}, that of {}", names.v, shape_text(v),
            shape_text(k), names.k);
    if (steps(k, i) && k.stride(i) != v.stride(i)) {
      fail(ErrorCode::kUnsupported, "{}: got a stride of {} in dimension {}, want {}, that of {}",
           names.v, v.stride(i), i, k.stride(i), names.k);
    }
  }
  // Steps that are never taken must still look as if nothing overlapped.
  const int64_t pages = plain ? k.size(0) * (k.size(1) / plan.page_tokens) : k.size(0);
  KvLayout layout = order == KvOrder::kHnd
                        ? KvLayout::hnd(pages, plan.page_tokens, plan.kv_heads, plan.head_dim)
                        : KvLayout::nhd(pages, plan.page_tokens, plan.kv_heads, plan.head_dim);
  layout.head_stride = stride(k, heads_at, layout.head_stride);
  layout.token_stride = stride(k, tokens_at, layout.token_stride);
  if (!plain) {
    layout.page_stride = stride(k, 0, layout.page_stride);
  } else {
    layout.page_stride = plan.page_tokens * layout.token_stride;
    require(!steps(k, 0) || k.stride(0) == k.size(1) * layout.token_stride,
            "{}: got a stride of {} between sequences of {} tokens that are {} apart, want them "
            "contiguous",
            names.k, k.stride(0), k.size(1), layout.token_stride);
  }
  return {address(k), address(v), layout};
}

TensorRules fp32_rules(TensorRules rules) {
  rules.dtype = DType::kF32;
  rules.bits = rules.of_plan = false;
  return rules;
}

float* lse_view(std::string_view argument, const ffi::TensorView& tensor, int32_t rows,
                int32_t heads, const TensorRules& rules) {
  check_tensor(argument, tensor, fp32_rules(rules));
  const int32_t n = tensor.ndim();
  require((n == 2 || n == 3) && tensor.size(n - 1) == heads && leading(tensor, n - 1) == rows,
          "{}: got shape {}, want ({}, {}): q_rows, q_heads", argument, shape_text(tensor), rows,
          heads);
  require(tensor.IsContiguous(), "{}: got strided memory, want it contiguous", argument);
  return static_cast<float*>(address(tensor));
}

const float* sinks_view(std::string_view argument, const ffi::TensorView& tensor, int32_t heads,
                        const TensorRules& rules) {
  check_variant(Variant::kSinks, rules.backend);
  check_tensor(argument, tensor, fp32_rules(rules));
  require(tensor.ndim() == 1 && tensor.size(0) == heads, "{}: got shape {}, want ({},): q_heads",
          argument, shape_text(tensor), heads);
  require(tensor.IsContiguous(), "{}: got strided memory, want it contiguous", argument);
  return static_cast<const float*>(address(tensor));
}

std::span<const float> scales_view(std::string_view argument, const ffi::TensorView& tensor,
                                   const TensorRules& rules) {
  check_tensor(argument, tensor, fp32_rules(rules));
  require(tensor.ndim() <= 1, "{}: got shape {}, want (1,) or (kv_heads,)", argument,
          shape_text(tensor));
  require(tensor.IsContiguous(), "{}: got strided memory, want it contiguous", argument);
  return {static_cast<const float*>(address(tensor)), static_cast<size_t>(tensor.numel())};
}

}  // namespace pando::python
