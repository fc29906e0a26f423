// 02: the shared prefix is read once for a block of rows; suffixes follow, and are merged with it.
//
// A row's tokens may be cut anywhere: each part gives a partial (o, lse), and two partials merge to
// the result of both (include/pando/merge.h):
//
//   lse = ln(e^lse_a + e^lse_b)      o = e^(lse_a - lse) o_a + e^(lse_b - lse) o_b
//
// So the prefix can be one pass for all rows together (chunk-first, as in ChunkAttention, Ye et
// al., 2024), and each sequence's own tokens another. Rows of one kv head are packed: the group of
// query heads of every sequence, one after the other, 16 to a thread block.
//
//   packed rows of a kv head     prefix_kernel            suffix_kernel
//   s0 h0 h1 h2 h3               ┐ one thread block:      one thread block: suffix of s0
//   s1 h0 h1 h2 h3               │ each K and V of the    one thread block: suffix of s1
//   s2 h0 h1 h2 h3               │ prefix, once for       …
//   s3 h0 h1 h2 h3               ┘ 16 rows                each ends with the merge
//
// Both kernels are the same function, attend_rows: who shares is only a matter of which rows and
// which tokens it is given. It keeps 64 scores a row, whatever the context: the online softmax
// (Milakov and Gimelshein, 2018) scales what it has summed up whenever a larger score turns up.
//
// What this one adds: a prefix byte is read ceil(B * group / 16) times instead of B * group times.
// What still hurts:
// - Multiplying: 16 rows * 64 tokens * 128 is a matrix product, done here by one fused multiply-add
//   after the other, each with an operand from shared memory. 03 gives it to the tensor cores, for
//   64 rows.
// - Reading, softmax and multiplying wait for each other at three barriers a tile. 04 overlaps
// them.
// - A prefix is one thread block's work for 16 rows: few rows leave most of the GPU idle. Suffixes
//   of small groups pad 16 rows. And partials go through memory between two launches.
#include "cuda/ptx/shared.cuh"
#include "lab/lab.h"
#include "lab/launch.cuh"
#include "pando/merge.h"

namespace pando::lab {
namespace {

constexpr int kPrefixThreads = 128;
constexpr int kPrefixRows = 16;
constexpr int kPrefixTokens = 64;                     // of a tile
constexpr int kLanes = kPrefixThreads / kPrefixRows;  // threads of a row in the softmax
static_assert(kPrefixThreads == kHeadDim && kLanes == 8);

struct PrefixShared {
  float q[kPrefixRows][kHeadDim];
  /// One float more a row: the threads of a warp read a column, from 32 banks instead of one.
  float k[kPrefixTokens][kHeadDim + 1];
  float p[kPrefixRows][kPrefixTokens];  ///< scores, then weights
  float shrink[kPrefixRows];            ///< what earlier tiles count for since top has moved
  float sum[kPrefixRows];
  float lse[kPrefixRows];
};
static_assert(sizeof(PrefixShared) <= 48 * 1024);

/// Packed rows [begin, end) of a kv head, at most 16.
struct PackedRows {
  int32_t begin, end;
  __device__ bool has(int r) const { return begin + r < end; }
};

/// A run of tokens at one kv head.
struct Tokens {
  const Element* g_k;
  const Element* g_v;
  int64_t stride;
  int32_t count;
};

/// Scores of a tile. Each thread takes one token for 8 of the rows, so that a K that it has read
/// from shared memory is used 8 times; q is the same for the whole warp, one broadcast.
__device__ void score_tile(PrefixShared& shared, int32_t valid) {
  constexpr int kRowsEach = 8;
  const int token = threadIdx.x % kPrefixTokens;
  const int first = threadIdx.x / kPrefixTokens * kRowsEach;
  float s[kRowsEach] = {};
  for (int d = 0; d < kHeadDim; ++d) {
    const float k = shared.k[token][d];
#pragma unroll
    for (int r = 0; r < kRowsEach; ++r) s[r] += shared.q[first + r][d] * k;
  }
#pragma unroll
  for (int r = 0; r < kRowsEach; ++r) {
    shared.p[first + r][token] = token < valid ? kScale * s[r] : -INFINITY;
  }
}

/// Scores of a tile to weights exp(s - top), 8 threads a row, all of which know top and sum.
__device__ void softmax_tile(PrefixShared& shared, float& top, float& sum) {
  const int row = threadIdx.x / kLanes;
  const int lane = threadIdx.x % kLanes;
  float largest = top;
  for (int t = lane; t < kPrefixTokens; t += kLanes) largest = fmaxf(largest, shared.p[row][t]);
  for (int step = kLanes / 2; step > 0; step /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
  }
  const float base = largest == -INFINITY ? 0.0f : largest;  // -inf - -inf would be NaN
  float added = 0;
  for (int t = lane; t < kPrefixTokens; t += kLanes) {
    shared.p[row][t] = expf(shared.p[row][t] - base);
    added += shared.p[row][t];
  }
  for (int step = kLanes / 2; step > 0; step /= 2) added += __shfl_xor_sync(~0u, added, step);
  const float shrink = expf(top - base);
  if (lane == 0) shared.shrink[row] = shrink;
  sum = sum * shrink + added;
  top = largest;
}

/// o and lse of `rows` over `tokens`. Thread d is left with dimension d of row r in o[r],
/// normalised; shared.lse has the rows' LSE. Rows that are not there come out as anything finite.
__device__ void attend_rows(const Batch& batch, PackedRows rows, int32_t kv_head,
                            const Tokens& tokens, PrefixShared& shared, float (&o)[kPrefixRows]) {
  const int d = threadIdx.x;
  float top = -INFINITY, sum = 0;  // of row d / kLanes
#pragma unroll
  for (int r = 0; r < kPrefixRows; ++r) {
    o[r] = 0;
    shared.q[r][d] =
        rows.has(r)
            ? __bfloat162float(batch.q[batch.row_index(rows.begin + r, kv_head) * kHeadDim + d])
            : 0.0f;
  }
  for (int32_t begin = 0; begin < tokens.count; begin += kPrefixTokens) {
    const int32_t valid = min(kPrefixTokens, tokens.count - begin);
    const int64_t at = begin * tokens.stride + d;
    for (int t = 0; t < kPrefixTokens; ++t) {
      shared.k[t][d] = t < valid ? __bfloat162float(tokens.g_k[at + t * tokens.stride]) : 0.0f;
    }
    __syncthreads();  // K is there, and everybody is done with the weights of the tile before
    score_tile(shared, valid);
    __syncthreads();
    softmax_tile(shared, top, sum);
    __syncthreads();
#pragma unroll
    for (int r = 0; r < kPrefixRows; ++r) o[r] *= shared.shrink[r];
    // Only this thread needs column d of V: it goes from global memory straight into a register,
    // where it is used 16 times.
    for (int t = 0; t < valid; ++t) {
      const float v = __bfloat162float(tokens.g_v[at + t * tokens.stride]);
#pragma unroll
      for (int r = 0; r < kPrefixRows; ++r) o[r] += shared.p[r][t] * v;
    }
  }
  if (d % kLanes == 0) {
    shared.sum[d / kLanes] = sum;
    shared.lse[d / kLanes] = sum > 0 ? top + logf(sum) : -INFINITY;
  }
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kPrefixRows; ++r) o[r] = shared.sum[r] > 0 ? o[r] / shared.sum[r] : 0.0f;
}

}  // namespace

/// Thread block (x, y): packed rows [16 x, 16 x + 16) of kv head y over the whole prefix.
__global__ void __launch_bounds__(kPrefixThreads)
    prefix_kernel(const __grid_constant__ Batch batch) {
  auto& shared = ptx::dynamic_shared<PrefixShared>();
  const int32_t kv_head = blockIdx.y;
  const int32_t begin = blockIdx.x * kPrefixRows;
  const PackedRows rows{begin, min(begin + kPrefixRows, batch.packed_rows())};
  const int64_t at = batch.token_offset(0, kv_head);
  float o[kPrefixRows];
  attend_rows(
      batch, rows, kv_head,
      {batch.prefix_k + at, batch.prefix_v + at, batch.token_offset(1, 0), batch.prefix_tokens},
      shared, o);
  const int d = threadIdx.x;
#pragma unroll
  for (int r = 0; r < kPrefixRows; ++r) {
    if (!rows.has(r)) break;
    const int64_t index = batch.row_index(rows.begin + r, kv_head);
    batch.partial_o[index * kHeadDim + d] = o[r];
    if (d == 0) batch.partial_lse[index] = shared.lse[r];
  }
}

/// Thread block (x, y): up to 16 rows of one sequence's group at kv head y over its suffix.
__global__ void __launch_bounds__(kPrefixThreads)
    suffix_kernel(const __grid_constant__ Batch batch) {
  auto& shared = ptx::dynamic_shared<PrefixShared>();
  const int32_t group = batch.group();
  const int32_t blocks = (group + kPrefixRows - 1) / kPrefixRows;  // of a sequence
  const int32_t kv_head = blockIdx.y;
  const int32_t sequence = blockIdx.x / blocks;
  const int32_t begin = sequence * group + blockIdx.x % blocks * kPrefixRows;
  const PackedRows rows{begin, min(begin + kPrefixRows, (sequence + 1) * group)};
  const int32_t suffix_begin = batch.suffix_begin[sequence];
  const int64_t at = batch.token_offset(suffix_begin, kv_head);
  float o[kPrefixRows];
  attend_rows(batch, rows, kv_head,
              {batch.suffix_k + at, batch.suffix_v + at, batch.token_offset(1, 0),
               batch.suffix_begin[sequence + 1] - suffix_begin},
              shared, o);
  const int d = threadIdx.x;
#pragma unroll
  for (int r = 0; r < kPrefixRows; ++r) {
    if (!rows.has(r)) break;
    const int64_t index = batch.row_index(rows.begin + r, kv_head);
    float merged = batch.partial_o[index * kHeadDim + d];
    float lse = batch.partial_lse[index];
    merge_into(&merged, &lse, &o[r], shared.lse[r], 1);  // this thread's dimension
    batch.out[index * kHeadDim + d] = __float2bfloat16_rn(merged);
    if (d == 0) batch.lse[index] = lse;
  }
}

void merge_suffixes(const Batch& batch, cudaStream_t stream) {
  const int32_t blocks = (batch.group() + kPrefixRows - 1) / kPrefixRows;
  launch(suffix_kernel, dim3(batch.sequences * blocks, batch.kv_heads), kPrefixThreads,
         sizeof(PrefixShared), stream, batch);
}

void shared_prefix(const Batch& batch, cudaStream_t stream) {
  check(batch);
  const int32_t blocks = (batch.packed_rows() + kPrefixRows - 1) / kPrefixRows;
  launch(prefix_kernel, dim3(blocks, batch.kv_heads), kPrefixThreads, sizeof(PrefixShared), stream,
         batch);
  merge_suffixes(batch, stream);
}

}  // namespace pando::lab
