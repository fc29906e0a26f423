// ldmatrix: 8x8 matrices from shared memory into the registers of a warp (PTX ISA, "Warp-level
// matrix load instruction: ldmatrix").
#pragma once

#include <cstdint>

namespace pando::ptx {

/// ldmatrix.x4: four matrices; lane l names row l % 8 of matrix l / 8.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&d)[4], uint32_t shared_address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(d[0]), "=r"(d[1]), "=r"(d[2]), "=r"(d[3])
               : "r"(shared_address)
               : "memory");
}

}  // namespace pando::ptx
