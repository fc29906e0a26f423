// 01: attention as the formula has it. One thread block computes one row: a sequence at a q head.
//
//   s_j = scale * q . k_j      lse = ln sum_j exp(s_j)      o = sum_j exp(s_j - lse) v_j
//
// over the tokens j of the prefix and of the sequence's suffix. All scores lie in shared memory, so
// that the softmax can look at them twice: for the largest, and for the sum.
//
// What still hurts:
// - Every row reads the whole prefix: B * group times the same bytes for one kv head. L2 and L1
// soften
//   it, but each of these reads costs an instruction, and a prefix that exceeds L2 comes from
//   memory again and again. 02 reads it once for many rows.
// - Each thread reads the K of tokens of its own, 2 bytes at a time, while its neighbours read rows
// that
//   lie kv_heads * 256 bytes away. 02 reads a row by neighbouring threads.
// - Scores are as long as the context, which shared memory bounds.
#include "cuda/ptx/shared.cuh"
#include "lab/lab.h"
#include "lab/launch.cuh"

namespace pando::lab {
namespace {

constexpr int kNaiveThreads = 128;
static_assert(kNaiveThreads == kHeadDim);  // at the end, thread d computes dimension d

/// Followed by one score for each token.
struct NaiveShared {
  float q[kHeadDim];
  float values[kNaiveThreads];  ///< one of each thread, in a reduction
};

/// `op` over the values of all threads, by halving: 64 pairs, 32 pairs, … 1 pair.
template <class Op>
__device__ float reduce(float value, float* s_values, const Op& op) {
  const int thread = threadIdx.x;
  s_values[thread] = value;
  __syncthreads();
  for (int pairs = kNaiveThreads / 2; pairs > 0; pairs /= 2) {
    if (thread < pairs) s_values[thread] = op(s_values[thread], s_values[thread + pairs]);
    __syncthreads();
  }
  const float result = s_values[0];
  __syncthreads();  // the next reduction writes to the same place
  return result;
}

__device__ float dot(const float* s_q, const Element* g_k) {
  float sum = 0;
  for (int d = 0; d < kHeadDim; ++d) sum += s_q[d] * __bfloat162float(g_k[d]);
  return sum;
}

/// Where the rows of one sequence's context begin: K or V of its tokens, prefix first.
struct Context {
  const Element* g_prefix;
  const Element* g_suffix;
  int32_t prefix_tokens;
  int64_t token_stride;

  __device__ const Element* row(int32_t token) const {
    return token < prefix_tokens ? g_prefix + token * token_stride
                                 : g_suffix + (token - prefix_tokens) * token_stride;
  }
};

}  // namespace

__global__ void __launch_bounds__(kNaiveThreads) naive_kernel(const __grid_constant__ Batch batch) {
  auto& shared = ptx::dynamic_shared<NaiveShared>();
  auto* const s_scores = reinterpret_cast<float*>(&shared + 1);

  const int thread = threadIdx.x;
  const int64_t row = blockIdx.x;  // of the [sequences, q_heads] rows
  const int32_t sequence = row / batch.q_heads;
  const int32_t kv_head = row % batch.q_heads / batch.group();
  const int32_t suffix_begin = batch.suffix_begin[sequence];
  const int32_t tokens = batch.prefix_tokens + batch.suffix_begin[sequence + 1] - suffix_begin;
  const int64_t prefix_at = batch.token_offset(0, kv_head);
  const int64_t suffix_at = batch.token_offset(suffix_begin, kv_head);
  const int64_t token_stride = batch.token_offset(1, 0);
  const Context k{batch.prefix_k + prefix_at, batch.suffix_k + suffix_at, batch.prefix_tokens,
                  token_stride};
  const Context v{batch.prefix_v + prefix_at, batch.suffix_v + suffix_at, batch.prefix_tokens,
                  token_stride};

  shared.q[thread] = __bfloat162float(batch.q[row * kHeadDim + thread]);
  __syncthreads();

  // Scores, and the largest of them. A row without tokens has none: -infinity.
  float top = -INFINITY;
  for (int32_t token = thread; token < tokens; token += kNaiveThreads) {
    s_scores[token] = kScale * dot(shared.q, k.row(token));
    top = fmaxf(top, s_scores[token]);
  }
  top = reduce(top, shared.values, [](float a, float b) { return fmaxf(a, b); });

  // Scores become weights exp(s - top): no weight exceeds 1, whatever the scores are.
  float sum = 0;
  for (int32_t token = thread; token < tokens; token += kNaiveThreads) {
    s_scores[token] = top == -INFINITY ? 0.0f : expf(s_scores[token] - top);
    sum += s_scores[token];
  }
  sum = reduce(sum, shared.values, [](float a, float b) { return a + b; });

  // Output: thread d owns dimension d, so that a warp reads 64 bytes side by side. The barriers of
  // the reduction have made all weights visible.
  float o = 0;
  for (int32_t token = 0; token < tokens; ++token) {
    o += s_scores[token] * __bfloat162float(v.row(token)[thread]);
  }
  batch.out[row * kHeadDim + thread] = __float2bfloat16_rn(sum > 0 ? o / sum : 0.0f);
  if (thread == 0) batch.lse[row] = sum > 0 ? top + logf(sum) : -INFINITY;
}

void naive(const Batch& batch, cudaStream_t stream) {
  check(batch);
  const int64_t tokens = int64_t{batch.prefix_tokens} + batch.longest_suffix;
  constexpr int64_t kMostTokens =
      (kMostSharedBytes - int64_t{sizeof(NaiveShared)}) / int64_t{sizeof(float)};
  static_assert(kMostTokens == 57856);
  if (tokens > kMostTokens) {
    refuse("01_naive", "prefix_tokens + longest_suffix", tokens,
           "at most 57856 tokens: their scores lie in shared memory");
  }
  launch(naive_kernel, dim3(batch.sequences * batch.q_heads), kNaiveThreads,
         sizeof(NaiveShared) + tokens * sizeof(float), stream, batch);
}

}  // namespace pando::lab
