#include "tensors.h"

#include <array>

namespace pando::python {
namespace {

std::string dtype_text(DLDataType dtype) {
  switch (dtype.code) {
    case kDLInt: return fmt::format("int{}", dtype.bits);
    case kDLUInt: return fmt::format("uint{}", dtype.bits);
    case kDLFloat: return fmt::format("float{}", dtype.bits);
    case kDLBfloat: return fmt::format("bfloat{}", dtype.bits);
    case kDLBool: return "bool";
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
    case DType::kBF16: break;
  }
  return {kDLBfloat, 16, 1};
}

bool same(DLDataType a, DLDataType b) {
  return a.code == b.code && a.bits == b.bits && a.lanes == b.lanes;
}

template <size_t N>
void check_shape(std::string_view argument, const ffi::TensorView& tensor,
                 const std::array<int64_t, N>& shape, std::string_view names) {
  bool ok = tensor.ndim() == static_cast<int32_t>(N);
  for (size_t i = 0; ok && i < N; ++i) ok = tensor.size(i) == shape[i];
  require(ok, "{}: got shape {}, want ({}): {}", argument, shape_text(tensor),
          fmt::join(shape, ", "), names);
}

void check_last_stride(std::string_view argument, const ffi::TensorView& tensor) {
  require(tensor.size(-1) <= 1 || tensor.stride(-1) == 1,
          "{}: got a stride of {} in the last dimension, want head_dim contiguous", argument,
          tensor.stride(-1));
}

void* address(const ffi::TensorView& tensor) {
  return static_cast<std::byte*>(tensor.data_ptr()) + tensor.byte_offset();
}

/// The stride of dimension `i`, or `contiguous` where no step is ever taken.
int64_t stride(const ffi::TensorView& tensor, int32_t i, int64_t contiguous) {
  return tensor.size(i) <= 1 ? contiguous : tensor.stride(i);
}

std::span<int32_t> ints(std::string_view argument, const ffi::TensorView& tensor) {
  if (!on_host(tensor.device())) {
    fail(ErrorCode::kTypeMismatch, "{}: got memory of {}, want that of the host", argument,
         device_text(tensor.device()));
  }
  if (!same(tensor.dtype(), {kDLInt, 32, 1})) {
    fail(ErrorCode::kTypeMismatch, "{}: got dtype {}, want int32", argument,
         dtype_text(tensor.dtype()));
  }
  require(tensor.IsContiguous(), "{}: got strided memory, want it contiguous", argument);
  return {static_cast<int32_t*>(address(tensor)), static_cast<size_t>(tensor.numel())};
}

}  // namespace

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
std::span<int32_t> writable_host_ints(std::string_view argument, const ffi::TensorView& tensor) {
  return ints(argument, tensor);
}

void check_tensor(std::string_view argument, const ffi::TensorView& tensor,
                  const TensorRules& rules) {
  const DLDevice device = tensor.device();
  const bool device_ok =
      rules.backend == Backend::kCpu
          ? on_host(device)
          : device.device_type == kDLCUDAManaged ||
                (device.device_type == kDLCUDA && device.device_id == rules.device_id);
  if (!device_ok) {
    fail(ErrorCode::kTypeMismatch, "{}: got memory of {}, want that of {}, the plan's device",
         argument, device_text(device),
         rules.backend == Backend::kCpu ? std::string("the host")
                                        : fmt::format("CUDA device {}", rules.device_id));
  }
  const bool is_bits = rules.bits && rules.dtype == DType::kBF16 &&
                       same(tensor.dtype(), {kDLUInt, 16, 1});
  if (!is_bits && !same(tensor.dtype(), wanted(rules.dtype))) {
    fail(ErrorCode::kTypeMismatch, "{}: got dtype {}, want {}, the plan's", argument,
         dtype_text(tensor.dtype()), dtype_text(wanted(rules.dtype)));
  }
}

RowsView rows_view(std::string_view argument, const ffi::TensorView& tensor, int32_t rows,
                   int32_t heads, int32_t head_dim, const TensorRules& rules) {
  check_tensor(argument, tensor, rules);
  check_shape<3>(argument, tensor, {rows, heads, head_dim}, "q_rows, q_heads, head_dim");
  check_last_stride(argument, tensor);
  const int64_t head_stride = stride(tensor, 1, head_dim);
  const int64_t row_stride = stride(tensor, 0, heads * head_stride);
  // For the library, two strides of 0 mean contiguous.
  require(head_stride != 0 && row_stride != 0,
          "{}: got a stride of 0, want rows and heads of their own", argument);
  return {address(tensor), row_stride, head_stride};
}

KvView kv_view(const ffi::TensorView& k, const ffi::TensorView& v, KvOrder order,
               const PlanHeader& plan, const TensorRules& rules) {
  const bool hnd = order == KvOrder::kHnd;
  const int32_t heads_at = hnd ? 1 : 2;
  const int32_t tokens_at = hnd ? 2 : 1;
  for (const auto& [name, tensor] : {std::pair{"k_cache", k}, std::pair{"v_cache", v}}) {
    check_tensor(name, tensor, rules);
    require(tensor.ndim() == 4 && tensor.size(tokens_at) == plan.page_tokens &&
                tensor.size(heads_at) == plan.kv_heads && tensor.size(3) == plan.head_dim,
            "{}: got shape {}, want (num_pages, {}, {}, {}): layout {}", name, shape_text(tensor),
            hnd ? plan.kv_heads : plan.page_tokens, hnd ? plan.page_tokens : plan.kv_heads,
            plan.head_dim, hnd ? "HND" : "NHD");
    check_last_stride(name, tensor);
  }
  require(k.size(0) == v.size(0), "v_cache: got shape {}, want {}, that of k_cache", shape_text(v),
          shape_text(k));
  for (int32_t i = 0; i < 3; ++i) {
    if (k.size(i) > 1 && k.stride(i) != v.stride(i)) {
      fail(ErrorCode::kUnsupported,
           "v_cache: got a stride of {} in dimension {}, want {}, that of k_cache", v.stride(i), i,
           k.stride(i));
    }
  }
  // Steps that are never taken must still look as if nothing overlapped.
  KvLayout layout = hnd ? KvLayout::hnd(k.size(0), plan.page_tokens, plan.kv_heads, plan.head_dim)
                        : KvLayout::nhd(k.size(0), plan.page_tokens, plan.kv_heads, plan.head_dim);
  layout.page_stride = stride(k, 0, layout.page_stride);
  layout.head_stride = stride(k, heads_at, layout.head_stride);
  layout.token_stride = stride(k, tokens_at, layout.token_stride);
  return {address(k), address(v), layout};
}

float* lse_view(std::string_view argument, const ffi::TensorView& tensor, int32_t rows,
                int32_t heads, TensorRules rules) {
  rules.dtype = DType::kF32;
  rules.bits = false;
  check_tensor(argument, tensor, rules);
  check_shape<2>(argument, tensor, {rows, heads}, "q_rows, q_heads");
  require(tensor.IsContiguous(), "{}: got strided memory, want it contiguous", argument);
  return static_cast<float*>(address(tensor));
}

}  // namespace pando::python
