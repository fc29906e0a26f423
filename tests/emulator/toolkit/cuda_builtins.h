// What a CUDA compiler knows without any header, for a host compiler. Included before everything.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "emulator/simt.h"

#define __device__
#define __global__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace pando::emulator {
struct Index {
  unsigned x, y;
};
inline Index thread_index() { return {static_cast<unsigned>(current().index), 0}; }
inline Index block_index() {
  return {static_cast<unsigned>(current().block->index),
          static_cast<unsigned>(current().block->index_y)};
}
inline Index grid_size() { return {static_cast<unsigned>(current().block->grid->blocks()), 1}; }

inline uint64_t to_bits(const auto& value) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(value));
  return bits;
}
template <class T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}
}  // namespace pando::emulator

#define threadIdx (::pando::emulator::thread_index())
#define blockIdx (::pando::emulator::block_index())
#define gridDim (::pando::emulator::grid_size())

using std::max;
using std::min;

inline int __popc(uint32_t bits) { return std::popcount(bits); }
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t which) {
  const uint64_t both = low | uint64_t{high} << 32;
  uint32_t bytes = 0;
  for (int i = 0; i < 4; ++i) bytes |= uint32_t(both >> 8 * (which >> 4 * i & 7) & 255) << 8 * i;
  return bytes;
}
inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline float __fmul_rn(float a, float b) { return a * b; }  // built without contraction
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __expf(float x) { return std::exp(x); }

template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T>
T __ldcg(const T* from) {
  return *from;
}
template <class T>
void __stcg(T* to, T value) {
  *to = value;
}
inline unsigned long long atomicAdd(unsigned long long* to, unsigned long long value) {
  const unsigned long long before = *to;
  *to += value;
  return before;
}

inline void __syncthreads() {
  const auto& block = *::pando::emulator::current().block;
  ::pando::emulator::barrier_sync(
      0, static_cast<int>(block.warps.size()) * ::pando::emulator::kWarpThreads);
}
inline void __syncwarp() { ::pando::emulator::exchange(~0u, "__syncwarp", 0); }
template <class T>
T __shfl_sync(uint32_t mask, T value, int lane) {
  using namespace pando::emulator;
  return from_bits<T>(exchange(mask, "__shfl_sync", to_bits(value))[lane & 31]);
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T value, int lanes) {
  using namespace pando::emulator;
  const int lane = current().lane() ^ lanes;
  return from_bits<T>(exchange(mask, "__shfl_xor_sync", to_bits(value))[lane]);
}
inline uint32_t __ballot_sync(uint32_t mask, bool vote) {
  const uint64_t* const votes = ::pando::emulator::exchange(mask, "__ballot_sync", vote);
  uint32_t bits = 0;
  for (int lane = 0; lane < 32; ++lane) {
    bits |= (mask >> lane & 1) != 0 && votes[lane] != 0 ? uint32_t{1} << lane : 0;
  }
  return bits;
}
inline bool __any_sync(uint32_t mask, bool vote) { return __ballot_sync(mask, vote) != 0; }
inline uint32_t __reduce_add_sync(uint32_t mask, uint32_t value) {
  const uint64_t* const values = ::pando::emulator::exchange(mask, "__reduce_add_sync", value);
  uint32_t sum = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) != 0) sum += static_cast<uint32_t>(values[lane]);
  }
  return sum;
}
inline int32_t __reduce_max_sync(uint32_t mask, int32_t value) {
  const uint64_t* const values = ::pando::emulator::exchange(mask, "__reduce_max_sync", value);
  int32_t most = value;
  for (int lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) != 0) most = std::max(most, static_cast<int32_t>(values[lane]));
  }
  return most;
}
inline int32_t __float_as_int(float value) { return std::bit_cast<int32_t>(value); }
inline float __int_as_float(int32_t bits) { return std::bit_cast<float>(bits); }
inline size_t __cvta_generic_to_shared(const void* generic) {
  return static_cast<const std::byte*>(generic) - ::pando::emulator::current().block->shared;
}
