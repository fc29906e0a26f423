// What every kernel of the lab takes, and their launches.
#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>

#include "core/grouping.h"

namespace pando::lab {

using Element = __nv_bfloat16;
inline constexpr int32_t kHeadDim = 128;
inline constexpr float kScale = 0.08838834764831845f;  ///< 1 / sqrt(kHeadDim)

/// One decode step: every sequence has one query row, which sees the shared prefix and then the
/// sequence's own suffix. All tensors are contiguous and lie in device memory, aligned to 16 bytes.
struct Batch {
  int32_t sequences = 0;
  int32_t q_heads = 0;  ///< a multiple of kv_heads
  int32_t kv_heads = 0;
  int32_t head_dim = kHeadDim;
  int32_t prefix_tokens = 0;
  int32_t longest_suffix = 0;  ///< tokens

  const Element* q = nullptr;             ///< [sequences, q_heads, 128]
  const Element* prefix_k = nullptr;      ///< [prefix_tokens, kv_heads, 128]
  const Element* prefix_v = nullptr;      ///< as prefix_k
  const Element* suffix_k = nullptr;      ///< [suffix_begin[sequences], kv_heads, 128]
  const Element* suffix_v = nullptr;      ///< as suffix_k
  const int32_t* suffix_begin = nullptr;  ///< [sequences + 1]: each sequence's first token there

  Element* out = nullptr;        ///< [sequences, q_heads, 128]
  float* lse = nullptr;          ///< [sequences, q_heads], natural log
  float* partial_o = nullptr;    ///< [sequences, q_heads, 128]: what 02, 03 and 04 leave of the
  float* partial_lse = nullptr;  ///< [sequences, q_heads]       prefix for the merge

  constexpr int32_t group() const { return q_heads / kv_heads; }
  /// Rows of one kv head: the group of every sequence, one after the other.
  constexpr int32_t packed_rows() const { return sequences * group(); }
  /// Which of the [sequences, q_heads] rows of q, out and partials a packed row is.
  constexpr int64_t row_index(int32_t packed, int32_t kv_head) const {
    return row_of_packed(packed, group()) * q_heads + q_head_of_packed(packed, kv_head, group());
  }
  /// Where a token's row begins in K and in V, in elements.
  constexpr int64_t token_offset(int64_t token, int32_t kv_head) const {
    return (token * kv_heads + kv_head) * kHeadDim;
  }
};

/// Throws kInvalidArgument or kUnsupported, naming the argument, for what no kernel of the lab can
/// compute; a launch does so before anything is enqueued.
void check(const Batch& batch);
/// Throws kUnsupported: `kernel` cannot compute `argument` of `got`.
[[noreturn]] void refuse(const char* kernel, const char* argument, int64_t got, const char* wanted);

// Each enqueues attention of `batch` on `stream`. They throw as check() does, kUnsupported for what
// only they cannot compute, and kDevice when a launch fails.
void naive(const Batch& batch, cudaStream_t stream);
void shared_prefix(const Batch& batch, cudaStream_t stream);
void tensor_cores(const Batch& batch, cudaStream_t stream);
void tma_ring(const Batch& batch, cudaStream_t stream);

/// The second half of 02, 03 and 04: every sequence's suffix, merged with the partials.
void merge_suffixes(const Batch& batch, cudaStream_t stream);

struct Kernel {
  const char* name;
  void (*attend)(const Batch&, cudaStream_t);
};
inline constexpr std::array<Kernel, 4> kKernels = {{{"01_naive", naive},
                                                    {"02_shared_prefix", shared_prefix},
                                                    {"03_tensor_cores", tensor_cores},
                                                    {"04_tma_ring", tma_ring}}};

}  // namespace pando::lab
