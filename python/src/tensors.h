// Tensors of the caller: what they must look like, and the views that the library takes.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "binding.h"
#include "pando/attention.h"
#include "pando/plan.h"

namespace pando::python {

/// The order of the dimensions of K and V.
enum class KvOrder : int64_t {
  kNhd = 0,    ///< [num_pages, page_tokens, kv_heads, head_dim]
  kHnd = 1,    ///< [num_pages, kv_heads, page_tokens, head_dim]
  kPlain = 2,  ///< [sequences, tokens, kv_heads, head_dim], contiguous over sequences and tokens
};

/// Elements of a contiguous int32 tensor in host memory. Throws kTypeMismatch or kInvalidArgument.
std::span<const int32_t> host_ints(std::string_view argument, const ffi::TensorView& tensor);
/// The same of uint64.
std::span<const uint64_t> host_masks(std::string_view argument, const ffi::TensorView& tensor);
std::span<int32_t> writable_host_ints(std::string_view argument, const ffi::TensorView& tensor);

/// What tensors of one call have in common.
struct TensorRules {
  DType dtype;
  Backend backend;
  int32_t device_id;     ///< of CUDA
  bool bits = false;     ///< bf16 comes as uint16, since NumPy has no code for it
  bool of_plan = false;  ///< the dtype is the plan's, as messages should say
};

/// Throws kTypeMismatch unless dtype and device of `tensor` are those of `rules`.
void check_tensor(std::string_view argument, const ffi::TensorView& tensor,
                  const TensorRules& rules);

/// Whether the elements of the last dimension follow each other; those of an empty tensor do.
bool last_is_contiguous(const ffi::TensorView& tensor);

/// A [rows, heads, head_dim] tensor, or one of [sequences, rows, heads, head_dim] whose rows lie at
/// one distance; both strides are set.
RowsView rows_view(std::string_view argument, const ffi::TensorView& tensor, int32_t rows,
                   int32_t heads, int32_t head_dim, const TensorRules& rules);

/// What K and V are called in messages.
struct KvNames {
  std::string k;
  std::string v;
};

/// K and V of one paged cache, whose strides must agree.
struct KvView {
  const void* k;
  const void* v;
  KvLayout layout;
};
/// Of the plan's kv_dtype. Throws kUnsupported where the strides of K and V differ.
KvView kv_view(const ffi::TensorView& k, const ffi::TensorView& v, KvOrder order,
               const KvNames& names, const PlanHeader& plan, TensorRules rules);

/// The same for tensors that are fp32 whatever the plan's dtype is.
TensorRules fp32_rules(TensorRules rules);

/// A contiguous fp32 [rows, heads] tensor, or one of [sequences, rows, heads].
float* lse_view(std::string_view argument, const ffi::TensorView& tensor, int32_t rows,
                int32_t heads, const TensorRules& rules);

/// Contiguous fp32 [heads].
const float* sinks_view(std::string_view argument, const ffi::TensorView& tensor, int32_t heads,
                        const TensorRules& rules);

/// Contiguous fp32 [n], or a single number: the library knows how many it wants.
std::span<const float> scales_view(std::string_view argument, const ffi::TensorView& tensor,
                                   const TensorRules& rules);

/// Of the first element.
void* address(const ffi::TensorView& tensor);

/// Such as "(4, 8, 128)".
std::string shape_text(const ffi::TensorView& tensor);

}  // namespace pando::python
