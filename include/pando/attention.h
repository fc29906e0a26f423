// What is computed (AttentionSpec) and where its tensors lie (KvLayout, RowsView, AttendArgs).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace pando {

/// Element type of tensors. Scores, softmax, accumulation and LSE are always fp32.
///
/// fp8, of k and v alone, is E4M3 of the OCP 8-bit specification, float8_e4m3fn elsewhere: sign, 4
/// bits of exponent with bias 7, 3 of mantissa; largest 448, NaN, no infinities.
enum class DType : int32_t { kF32 = 0, kBF16 = 1, kF16 = 2, kE4M3 = 3 };

/// Size of one element in bytes.
constexpr int64_t dtype_bytes(DType dtype) {
  return dtype == DType::kF32 ? 4 : dtype == DType::kE4M3 ? 1 : 2;
}
/// "fp32", "bf16", "fp16" or "fp8".
std::string_view dtype_name(DType dtype);
/// Inverse of dtype_name, for what q may be; throws kInvalidArgument with the list of names.
DType dtype_from_name(std::string_view name);

/// The one mask rule: a query row sees kv positions `[begin, end)` of its own sequence; in a tree
/// of draft tokens, of the last 64 of these only some.
/// `end` is clamped to the sequence's kv_len, `begin` to 0; an empty range gives o = 0, lse = -inf.
struct VisibleRange {
  int32_t begin = 0;
  int32_t end = 0;
  friend bool operator==(const VisibleRange&, const VisibleRange&) = default;
};

/// Which attention is computed, over visible j:
///
///     x_ij  = scale * q_i . k_j, with fp8 KV  scale * k_scale * q_i . k_j
///     s_ij  = x_ij, or with a soft cap  soft_cap * tanh(x_ij / soft_cap)
///     lse_i = ln(sum_j exp(s_ij) + exp(sink))
///     o_i   = sum_j exp(s_ij - lse_i) v_j, with fp8 KV  v_scale times that
///
/// Scores are capped before the mask: a cap does not change what a row sees. Sinks and the scales
/// of K and V are in AttendArgs.
struct AttentionSpec {
  int32_t q_heads = 0;                         ///< a multiple of kv_heads
  int32_t kv_heads = 0;                        ///< q head h reads kv head h / (q_heads / kv_heads)
  int32_t head_dim = 0;                        ///< CPU: a multiple of 8 up to 256
  DType dtype = DType::kBF16;                  ///< of q and out: not fp8
  std::optional<DType> kv_dtype = {};          ///< of k and v: as dtype, or fp8; absent: as dtype
  std::optional<float> scale = {};             ///< 1 / sqrt(head_dim) when absent
  float soft_cap = 0;                          ///< scores stay within +-soft_cap; 0: no cap
  bool causal = true;                          ///< query rows are the last tokens of their sequence
  int32_t window = 0;                          ///< a row sees its last `window` positions; 0: all
  std::span<const VisibleRange> visible = {};  ///< [q_rows]; replaces causal; window must be 0 then
  /// [q_rows]; the query rows of a sequence, 64 at most, are nodes of a tree of draft tokens. Bit j
  /// of a row: it sees query token j of its sequence, at position kv_len - q_len + j. It sees all
  /// positions before kv_len - q_len. Bits from q_len on must be 0. Replaces causal; window must be
  /// 0 and visible empty then.
  std::span<const uint64_t> tree_mask = {};

  int32_t group() const { return q_heads / kv_heads; }
  float scale_or_default() const;
  DType kv_dtype_or_default() const { return kv_dtype.value_or(dtype); }
};

/// Strides of a paged K or V tensor in elements; head_dim is contiguous. K and V share it.
struct KvLayout {
  int64_t num_pages = 0;
  int32_t page_tokens = 0;
  int32_t kv_heads = 0;
  int32_t head_dim = 0;
  int64_t page_stride = 0;
  int64_t head_stride = 0;
  int64_t token_stride = 0;

  /// Contiguous [num_pages, kv_heads, page_tokens, head_dim].
  static KvLayout hnd(int64_t num_pages, int32_t page_tokens, int32_t kv_heads, int32_t head_dim);
  /// Contiguous [num_pages, page_tokens, kv_heads, head_dim].
  static KvLayout nhd(int64_t num_pages, int32_t page_tokens, int32_t kv_heads, int32_t head_dim);

  /// Offset in elements of token `slot` of page `page` at kv head `head`.
  int64_t offset(int64_t page, int32_t head, int32_t slot) const {
    return page * page_stride + head * head_stride + slot * token_stride;
  }
};

/// A [rows, heads, head_dim] tensor whose last dimension is contiguous; strides in elements.
/// Both strides 0 means contiguous.
struct ConstRowsView {
  const void* data = nullptr;
  int64_t row_stride = 0;
  int64_t head_stride = 0;
};
struct RowsView {
  void* data = nullptr;
  int64_t row_stride = 0;
  int64_t head_stride = 0;
};

/// Every pointer that `attend` reads or writes, in the memory of the plan's backend.
struct AttendArgs {
  ConstRowsView q;                    ///< [q_rows, q_heads, head_dim]
  const void* k = nullptr;            ///< paged, see kv
  const void* v = nullptr;            ///< paged, see kv
  KvLayout kv;                        ///< strides of k and of v
  std::span<const int32_t> page_ids;  ///< the ids that the forest was discovered from
  RowsView out;                       ///< [q_rows, q_heads, head_dim]
  float* lse = nullptr;               ///< optional, contiguous [q_rows, q_heads], natural log
  std::span<std::byte> workspace;     ///< at least plan.workspace_bytes(), 64-byte aligned
  /// Optional, contiguous [q_heads]: attention sinks, logits that take part in the softmax of every
  /// row of their head and have no value. They are neither scaled nor capped; -inf is no sink. lse
  /// includes them, and a row that sees nothing has o = 0 and lse = sink. Whoever merges results of
  /// parts of the kv must give sinks to one part only.
  const float* sinks = nullptr;
  /// With fp8 KV, and only then: what its elements stand for is `scale * element`. Contiguous [1],
  /// or [kv_heads] with a scale for each head; finite and positive. Of K and of V, each of its own.
  std::span<const float> k_scale = {};
  std::span<const float> v_scale = {};
};

}  // namespace pando
