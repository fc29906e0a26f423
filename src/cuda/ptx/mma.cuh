// mma.sync: matrix multiply-accumulate of one warp, its operands in registers (PTX ISA, "Warp Level
// Matrix Multiply-Accumulate Instructions").
#pragma once

#include <cstdint>

namespace pando::ptx {

/// mma.m16n8k16 of fp16: d += a * b. Lane 4 * g + t holds of a rows g and g + 8, of b column g,
/// both at places 2 t, 2 t + 1, and these plus 8 along k; of d columns 2 t and 2 t + 1 of these
/// rows.
__device__ __forceinline__ void mma_m16n8k16(float* d, const uint32_t (&a)[4], uint32_t b0,
                                             uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

}  // namespace pando::ptx
