// stmatrix: matrices from registers to shared memory (PTX ISA, "Warp Level Matrix Store
// Instruction: stmatrix").
#pragma once

#include <cstdint>

namespace pando::ptx {

/// stmatrix.x4: four matrices of 8 x 8 two-byte elements. Lane i gives the address of row i % 8 of
/// matrix i / 8, and of every matrix the elements 2 * (i % 4) and the next of row i / 4.
__device__ __forceinline__ void stmatrix_x4(void* row, uint32_t m0, uint32_t m1, uint32_t m2,
                                            uint32_t m3) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(row))),
               "r"(m0), "r"(m1), "r"(m2), "r"(m3)
               : "memory");
}

}  // namespace pando::ptx
