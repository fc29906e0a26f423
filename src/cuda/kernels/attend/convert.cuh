// fp8 K and V to what the tensor cores multiply: a warpgroup of its own takes tiles as they come
// from memory, row by row, and writes them as Element in the 128-byte swizzle, from where on they
// are tiles like any other. The scales of K and V are not its business: they are folded into the
// scale of the scores and into the last division.
#pragma once

#include <cstdint>
#include <cuda/ptx>

#include "cuda/kernels/attend/config.cuh"
#include "cuda/ptx/math.cuh"

namespace pando::cuda {

/// Four fp8 to Element, exactly; NaN stays NaN.
__device__ __forceinline__ uint2 convert_four(uint32_t four, __half) {
  return make_uint2(ptx::cvt_f16x2_e4m3x2(static_cast<uint16_t>(four)),
                    ptx::cvt_f16x2_e4m3x2(static_cast<uint16_t>(four >> 16)));
}
__device__ __forceinline__ uint2 convert_four(uint32_t four, __nv_bfloat16) {
  const uint2 halves = convert_four(four, __half{});
  const auto two = [](uint32_t pair) {
    return ptx::cvt_pack(ptx::cvt_f32_f16(static_cast<uint16_t>(pair)),
                         ptx::cvt_f32_f16(static_cast<uint16_t>(pair >> 16)), __nv_bfloat16{});
  };
  return make_uint2(two(halves.x), two(halves.y));
}

/// One tile, by 128 threads. A thread reads 16 bytes and writes 32: two neighbouring chunks of a
/// token's row. Eight threads that follow each other write to eight places of a 128-byte line, and
/// read from as many.
template <class C>
__device__ __forceinline__ void convert_tile(const uint8_t* from, uint8_t* to) {
  using E = typename C::Element;
  constexpr int kChunks = C::kHeadDim / 16;     // that a token is read in
  constexpr int kTokensAtOnce = 128 / kChunks;  // by all threads
  constexpr int kAhead = 4;                     // reads that a thread has under way
  constexpr bool kSwizzled = is_swizzled(C::kLoadRowBytes);
  const int thread = this_thread<C>() % 128;
  const int chunk = thread % kChunks;
  // Those who write to another half take another token, whose swizzle is another.
  const int token = (thread / kChunks) ^ (chunk / 4);
  from += token * C::kHeadDim + (kSwizzled ? chunk ^ (token & 7) : chunk) * 16;
  to += C::granule_of(token) + chunk / 4 * C::kHalfBytes + token % kGranule * 128 +
        ((chunk % 4 * 2) ^ (token & 7)) * 16;
  // To the other chunk of the two.
  const int other = (token & 1) == 0 ? 16 : -16;
  static_assert(kTokensAtOnce % 8 == 0 && kTileTokens % (kTokensAtOnce * kAhead) == 0);
#pragma unroll
  for (int first = 0; first < kTileTokens; first += kTokensAtOnce * kAhead) {
    uint4 in[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      in[i] = *reinterpret_cast<const uint4*>(from + (first + i * kTokensAtOnce) * C::kHeadDim);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      uint8_t* const row = to + C::granule_of(first + i * kTokensAtOnce);
      const uint2 a = convert_four(in[i].x, E{}), b = convert_four(in[i].y, E{});
      *reinterpret_cast<uint4*>(row) = make_uint4(a.x, a.y, b.x, b.y);
      const uint2 c = convert_four(in[i].z, E{}), d = convert_four(in[i].w, E{});
      *reinterpret_cast<uint4*>(row + other) = make_uint4(c.x, c.y, d.x, d.y);
    }
  }
}

/// All tiles of the thread block, K and V in the ring's order, as the loaders bring them.
template <class C>
__device__ void convert_tiles(SharedPlan<C>& shared) {
  RingCursor<C::kLoadSlots> from(shared.fp8.ring);
  RingCursor<C::kSlots> to(shared.ring);
  static_assert(C::kKeysAhead);
  for (int32_t left = 2 * shared.start.tile_count; left > 0; --left) {
    if (left == 1) {  // there is no K beside the last V
      from.advance();
      to.advance();
    }
    from.wait_full();
    to.wait_empty();
    convert_tile<C>(shared.fp8_slots.slots[from.stage()], shared.slots[to.stage()]);
    ::cuda::ptx::fence_proxy_async(::cuda::ptx::space_shared);
    __syncwarp();
    if (threadIdx.x % 32 == 0) {
      from.release();
      to.fill();
    }
    from.advance();
    to.advance();
  }
}

}  // namespace pando::cuda
