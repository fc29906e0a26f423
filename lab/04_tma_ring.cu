// 04: loads and products run side by side. A producer warp fills a ring of tiles by TMA; a consumer
// warpgroup multiplies what is there.
//
//   warp 4, one thread      wait until a slot is empty → announce 16 KB → TMA K;  the same for V; …
//   warps 0 to 3            wait until the slot is full → S = Q K^T → give it back → softmax
//                           wait until the slot is full → O += P V → give it back; …
//
//            slot 0   slot 1   slot 2   slot 3   slot 0 …         K and V take slots in turn
//   loads    K0       V0       K1       V1       K2   waits until the scores of tile 0 are done
//   products S0       O0       S1       O1       S2
//
// TMA: a tensor map describes K or V once, on the host; then one instruction of one thread copies a
// whole tile. It computes the addresses, swizzles as tile64.cuh says, fills what lies past the last
// token with zeros, and counts the bytes that have come on a barrier in shared memory.
//
//   tensor map [64 elements, tokens, 2 halves, kv_heads]   box [64, 64 tokens, 2, 1]: one tile
//
// Ring<Stages> (src/cuda/pipeline/ring.cuh): a slot is full when the announced bytes have come,
// empty when each of the four consumer warps has given it back. Each barrier flips a phase bit when
// it is complete; a cursor counts along, and nobody else needs to know.
//
// What this one adds: memory always has up to four tiles under way; no thread copies.
// What still hurts, and what src/cuda/kernels/attend does about it (docs/kernels/attend.md):
// - One block of rows is one thread block's work, however long the prefix: few rows leave the GPU
//   idle. There, lists of work are split over all multiprocessors, and the parts merged.
// - Tensor cores idle during the softmax. There, two warpgroups take turns, each at its softmax
//   while the other multiplies, and the next scores are issued together with the last output.
// - Suffixes are a second launch of plain code, and partials go through memory. There, they are
// tiles
//   of the same list: one launch does everything, and most rows never become partials.
// - One contiguous prefix, one query row, one dtype. There, pages, any forest, and the mask rule.
#include "cuda/pipeline/ring.cuh"
#include "cuda/ptx/barrier.cuh"
#include "cuda/ptx/prefetch.cuh"
#include "cuda/tensor_map.h"
#include "lab/launch.cuh"
#include "lab/tile64.cuh"

namespace pando::lab {
namespace {

constexpr int kConsumerWarps = 4;
constexpr int kConsumerThreads = kConsumerWarps * 32;
constexpr int kRingThreads = kConsumerThreads + 32;
constexpr int kSlots = 4;

struct TmaRingShared {
  alignas(1024) uint8_t q[kTileBytes];
  alignas(1024) uint8_t slots[kSlots][kTileBytes];
  cuda::RingBarriers<kSlots> ring;
};
using Cursor = cuda::RingCursor<kSlots>;

/// The tile of 64 tokens from `begin` on into the cursor's slot; by one thread. The whole box
/// counts as announced bytes, also where it lies past the last token and is filled with zeros.
__device__ void load_slot(TmaRingShared& shared, Cursor& cursor, const CUtensorMap& map,
                          int32_t begin, int32_t kv_head) {
  cursor.wait_empty();
  cursor.expect(kTileBytes);
  const int32_t coords[4] = {0, begin, 0, kv_head};
  ::cuda::ptx::cp_async_bulk_tensor(::cuda::ptx::space_cluster, ::cuda::ptx::space_global,
                                    shared.slots[cursor.stage()], &map, coords,
                                    cursor.full_barrier());
  cursor.advance();
}

__device__ void produce(TmaRingShared& shared, const CUtensorMap& k_map, const CUtensorMap& v_map,
                        int32_t tokens, int32_t kv_head) {
  Cursor cursor(shared.ring);
  for (int32_t begin = 0; begin < tokens; begin += kTileTokens) {
    load_slot(shared, cursor, k_map, begin, kv_head);
    load_slot(shared, cursor, v_map, begin, kv_head);
  }
}

/// The warp is done with the slot: all its lanes are here, and one says so.
__device__ void give_back(Cursor& cursor) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) cursor.release();
  cursor.advance();
}

__device__ void consume(TmaRingShared& shared, const Batch& batch, int32_t first, int32_t kv_head) {
  load_queries(shared.q, batch, first, kv_head);
  ::cuda::ptx::fence_proxy_async(::cuda::ptx::space_shared);  // as in 03; TMA needs none
  ptx::bar_sync(1, kConsumerThreads);  // __syncthreads would wait for the producer
  Cursor cursor(shared.ring);
  RowState r;
  for (int32_t begin = 0; begin < batch.prefix_tokens; begin += kTileTokens) {
    Scores s;
    Weights p;
    cursor.wait_full();
    multiply_scores(s, shared.q, shared.slots[cursor.stage()]);
    give_back(cursor);
    softmax(s, r, min(kTileTokens, batch.prefix_tokens - begin));
    pack_weights(s, p);
    cursor.wait_full();
    multiply_output(r, p, shared.slots[cursor.stage()]);
    give_back(cursor);
  }
  write_partials(batch, first, kv_head, r);
}

/// K or V of the prefix, [tokens, kv_heads, 128], as TMA sees it: sizes from the innermost on, and
/// the bytes between neighbours of all but the innermost.
CUtensorMap tensor_map_of(const Batch& batch, const Element* g_rows) {
  constexpr int64_t kRowBytes = kHeadDim * sizeof(Element);
  const int64_t sizes[4] = {64, batch.prefix_tokens, 2, batch.kv_heads};
  const int64_t stride_bytes[3] = {kRowBytes * batch.kv_heads, kRowBytes / 2, kRowBytes};
  const int32_t box[4] = {64, kTileTokens, 2, 1};
  return cuda::tensor_map(g_rows, DType::kBF16, sizes, stride_bytes, box);
}

}  // namespace

/// Thread block (x, y): packed rows [64 x, 64 x + 64) of kv head y over the whole prefix.
__global__ void __launch_bounds__(kRingThreads)
    tma_ring_kernel(const __grid_constant__ Batch batch, const __grid_constant__ CUtensorMap k_map,
                    const __grid_constant__ CUtensorMap v_map) {
  auto& shared = ptx::dynamic_shared<TmaRingShared>();
  const int32_t first = blockIdx.x * kBlockRows;
  const int32_t kv_head = blockIdx.y;
  if (threadIdx.x == 0) {
    shared.ring.init(1, kConsumerWarps);
    ::cuda::ptx::fence_mbarrier_init(::cuda::ptx::sem_release, ::cuda::ptx::scope_cluster);
  }
  __syncthreads();  // nobody touches a barrier before it is one
  if (threadIdx.x < kConsumerThreads) {
    consume(shared, batch, first, kv_head);
  } else if (threadIdx.x == kConsumerThreads) {
    ptx::prefetch_tensormap(&k_map);
    ptx::prefetch_tensormap(&v_map);
    produce(shared, k_map, v_map, batch.prefix_tokens, kv_head);
  }
}

void tma_ring(const Batch& batch, cudaStream_t stream) {
  check(batch);
  if (batch.prefix_tokens == 0) {
    refuse("04_tma_ring", "prefix_tokens", 0, "at least 1: a tensor map cannot be empty");
  }
  const int32_t blocks = (batch.packed_rows() + kBlockRows - 1) / kBlockRows;
  launch(tma_ring_kernel, dim3(blocks, batch.kv_heads), kRingThreads, sizeof(TmaRingShared), stream,
         batch, tensor_map_of(batch, batch.prefix_k), tensor_map_of(batch, batch.prefix_v));
  merge_suffixes(batch, stream);
}

}  // namespace pando::lab
