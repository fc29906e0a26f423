#include "pando/attention.h"

#include <cmath>

#include "core/check.h"
#include "pando/version.h"

namespace pando {

std::string_view dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kF32: return "fp32";
    case DType::kBF16: return "bf16";
    case DType::kF16: return "fp16";
    case DType::kE4M3: return "fp8";
  }
  return "unknown";
}

DType dtype_from_name(std::string_view name) {
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    if (dtype_name(dtype) == name) return dtype;
  }
  fail(ErrorCode::kInvalidArgument, "dtype: got \"{}\", want one of fp32, bf16, fp16", name);
}

float AttentionSpec::scale_or_default() const {
  return scale ? *scale : 1.0f / std::sqrt(static_cast<float>(head_dim));
}

KvLayout KvLayout::hnd(int64_t num_pages, int32_t page_tokens, int32_t kv_heads, int32_t head_dim) {
  const int64_t head = int64_t{page_tokens} * head_dim;
  return {num_pages, page_tokens, kv_heads, head_dim, head * kv_heads, head, head_dim};
}

KvLayout KvLayout::nhd(int64_t num_pages, int32_t page_tokens, int32_t kv_heads, int32_t head_dim) {
  const int64_t token = int64_t{kv_heads} * head_dim;
  return {num_pages, page_tokens, kv_heads, head_dim, token * page_tokens, head_dim, token};
}

const char* version() {
#define PANDO_STRING_(x) #x
#define PANDO_STRING(x) PANDO_STRING_(x)
  return PANDO_STRING(PANDO_VERSION_MAJOR) "." PANDO_STRING(PANDO_VERSION_MINOR) "." PANDO_STRING(
      PANDO_VERSION_PATCH);
#undef PANDO_STRING
#undef PANDO_STRING_
}

}  // namespace pando
