// Matrix descriptors: where wgmma finds an operand in shared memory (PTX ISA, "Matrix Descriptor
// Format").
#pragma once

#include <cstdint>

namespace pando::ptx {

/// Descriptor of an operand in the 128-byte swizzle. `leading_bytes`: between 64-element column
/// blocks of an MN-major operand, unused otherwise. `stride_bytes`: between groups of 8 rows.
/// The same in all threads of a warp, which the broadcast tells the compiler: wgmma takes
/// descriptors from uniform registers, and each move there from another one holds up its issue.
__device__ __forceinline__ uint64_t matrix_descriptor(uint32_t shared_address,
                                                      uint32_t leading_bytes,
                                                      uint32_t stride_bytes) {
  constexpr uint32_t kSwizzle128 = 1u << 30;
  const uint32_t low = (shared_address & 0x3ffff) >> 4 | leading_bytes >> 4 << 16;
  return uint64_t{kSwizzle128 | stride_bytes >> 4} << 32 | __shfl_sync(~0u, low, 0);
}

/// The descriptor of what lies `bytes` further on.
__device__ __forceinline__ uint64_t advance(uint64_t descriptor, uint32_t bytes) {
  return (descriptor & 0xffffffff00000000) | (static_cast<uint32_t>(descriptor) + (bytes >> 4));
}

}  // namespace pando::ptx
