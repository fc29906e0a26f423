// 03: the prefix pass of 02 with both products on tensor cores, for 64 packed rows.
//
//   S = Q K^T,  64 x 128 x 64        P = exp(S - top)        O += P V,  64 x 64 x 128
//
// One warpgroup, 128 threads, issues wgmma together: it reads operands from shared memory by itself
// and leaves results in registers. What has to be right is where every element lies; tile64.cuh
// says it, and this file puts the elements there with plain loads and stores. Scores never go to
// memory: the softmax works on them in registers, and four threads hold a row between them.
//
//   global ──ld──▶ registers ──st──▶ shared Q, K, V ──wgmma──▶ S in registers ─┐ softmax
//                                              V ──wgmma──▶ O in registers ◀── P in registers
//
// What this one adds: multiplying costs hardly anything now; a prefix byte is read ceil(B * group /
// 64) times. A block of fewer rows is padded: while memory is what one waits for, that is free.
// What still hurts: every tile is a chain. Read K and V, wait, barrier, multiply, softmax,
// multiply, barrier, and only then ask for the next tile. While memory travels, the tensor cores
// idle, and the other way around; and all threads spend instructions on copying. 04 takes that from
// them.
#include "lab/launch.cuh"
#include "lab/tile64.cuh"

namespace pando::lab {
namespace {

struct TensorCoresShared {
  alignas(1024) uint8_t q[kTileBytes];
  alignas(1024) uint8_t k[kTileBytes];
  alignas(1024) uint8_t v[kTileBytes];
};

/// Tokens [begin, begin + valid) of the prefix at a kv head; zeros after them. 0 * NaN is NaN: V
/// must be zeros where there is no token, although the weights there are 0.
__device__ void load_tokens(uint8_t* s_tile, const Batch& batch, const Element* g_rows,
                            int32_t begin, int32_t valid, int32_t kv_head) {
  load_tile(s_tile, [&](int32_t token) -> const Element* {
    if (token >= valid) return nullptr;
    return g_rows + batch.token_offset(begin + token, kv_head);
  });
}

}  // namespace

/// Thread block (x, y): packed rows [64 x, 64 x + 64) of kv head y over the whole prefix.
__global__ void __launch_bounds__(128) tensor_cores_kernel(const __grid_constant__ Batch batch) {
  auto& shared = ptx::dynamic_shared<TensorCoresShared>();
  const int32_t first = blockIdx.x * kBlockRows;
  const int32_t kv_head = blockIdx.y;
  load_queries(shared.q, batch, first, kv_head);
  RowState r;
  for (int32_t begin = 0; begin < batch.prefix_tokens; begin += kTileTokens) {
    const int32_t valid = min(kTileTokens, batch.prefix_tokens - begin);
    load_tokens(shared.k, batch, batch.prefix_k, begin, valid, kv_head);
    load_tokens(shared.v, batch, batch.prefix_v, begin, valid, kv_head);
    // wgmma reads shared memory by another path, the async proxy, than the stores above went. Each
    // thread fences its own stores; then the barrier says that all have.
    ::cuda::ptx::fence_proxy_async(::cuda::ptx::space_shared);
    __syncthreads();
    Scores s;
    Weights p;
    multiply_scores(s, shared.q, shared.k);
    softmax(s, r, valid);
    pack_weights(s, p);
    multiply_output(r, p, shared.v);
    __syncthreads();  // every warp has read this tile before anybody overwrites it
  }
  write_partials(batch, first, kv_head, r);
}

void tensor_cores(const Batch& batch, cudaStream_t stream) {
  check(batch);
  const int32_t blocks = (batch.packed_rows() + kBlockRows - 1) / kBlockRows;
  launch(tensor_cores_kernel, dim3(blocks, batch.kv_heads), 128, sizeof(TensorCoresShared), stream,
         batch);
  merge_suffixes(batch, stream);
}

}  // namespace pando::lab
