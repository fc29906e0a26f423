// Matrix descriptors: where wgmma finds an operand in shared memory (PTX ISA, "Matrix Descriptor
// Format").
#pragma once

#include <cstdint>

namespace pando::ptx {

/// Descriptor of an operand in the 128-byte swizzle. `leading_bytes`: between 64-element column
/// blocks of an MN-major operand, unused otherwise. `stride_bytes`: between groups of 8 rows.
__device__ __forceinline__ uint64_t matrix_descriptor(uint32_t shared_address,
                                                      uint32_t leading_bytes,
                                                      uint32_t stride_bytes) {
  constexpr uint64_t kSwizzle128 = uint64_t{1} << 62;
  return kSwizzle128 | (uint64_t{(shared_address & 0x3ffff) >> 4}) |
         (uint64_t{leading_bytes >> 4} << 16) | (uint64_t{stride_bytes >> 4} << 32);
}

}  // namespace pando::ptx
