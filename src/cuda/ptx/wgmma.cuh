// wgmma: warpgroup matrix multiply-accumulate (PTX ISA, "Asynchronous Warpgroup Level Matrix
// Multiply-Accumulate Instructions").
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "cuda/ptx/matrix_descriptor.cuh"

namespace pando::ptx {

/// wgmma.fence: orders register and shared memory accesses before the next wgmma.
__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}

/// wgmma.commit_group: closes the group of wgmma issued so far.
__device__ __forceinline__ void wgmma_commit_group() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

/// wgmma.wait_group: waits until at most Pending groups are not complete.
template <int Pending>
__device__ __forceinline__ void wgmma_wait_group() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}

/// wgmma.wait_group, but not before `sum`, which is never negative, is known. ptxas moves the plain
/// form up, past arithmetic that needs none of the products: what was to hide under them waits for
/// them. A branch that nobody takes (nanosleep) holds it back.
template <int Pending>
__device__ __forceinline__ void wgmma_wait_group_after(float sum) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.lt.f32 p, %0, 0f00000000;\n@p nanosleep.u32 0;\n}\n" ::"f"(sum)
      : "memory");
  wgmma_wait_group<Pending>();
}

// The accumulators of a product, as text and as operands; each list begins with the shorter one.
#define PANDO_LIST_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define PANDO_LIST_32 \
  PANDO_LIST_16       \
  ", "                \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define PANDO_LIST_64                                                                \
  PANDO_LIST_32                                                                      \
  ", "                                                                               \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define PANDO_LIST_128                                                                         \
  PANDO_LIST_64                                                                                \
  ", "                                                                                         \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "           \
  "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "           \
  "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, "     \
  "%111, "                                                                                     \
  "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, " \
  "%127"
#define PANDO_REGISTERS_16 "{" PANDO_LIST_16 "}, "
#define PANDO_REGISTERS_32 "{" PANDO_LIST_32 "}, "
#define PANDO_REGISTERS_64 "{" PANDO_LIST_64 "}, "
#define PANDO_REGISTERS_128 "{" PANDO_LIST_128 "}, "
#define PANDO_OPERANDS_16(d)                                                                      \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
      "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),    \
      "+f"(d[15])
#define PANDO_OPERANDS_32(d)                                                                     \
  PANDO_OPERANDS_16(d), "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]),         \
      "+f"(d[21]), "+f"(d[22]), "+f"(d[23]), "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), \
      "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31])
#define PANDO_OPERANDS_64(d)                                                                     \
  PANDO_OPERANDS_32(d), "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]),         \
      "+f"(d[37]), "+f"(d[38]), "+f"(d[39]), "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), \
      "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47]), "+f"(d[48]), "+f"(d[49]), "+f"(d[50]), \
      "+f"(d[51]), "+f"(d[52]), "+f"(d[53]), "+f"(d[54]), "+f"(d[55]), "+f"(d[56]), "+f"(d[57]), \
      "+f"(d[58]), "+f"(d[59]), "+f"(d[60]), "+f"(d[61]), "+f"(d[62]), "+f"(d[63])
#define PANDO_OPERANDS_128(d)                                                                    \
  PANDO_OPERANDS_64(d), "+f"(d[64]), "+f"(d[65]), "+f"(d[66]), "+f"(d[67]), "+f"(d[68]),         \
      "+f"(d[69]), "+f"(d[70]), "+f"(d[71]), "+f"(d[72]), "+f"(d[73]), "+f"(d[74]), "+f"(d[75]), \
      "+f"(d[76]), "+f"(d[77]), "+f"(d[78]), "+f"(d[79]), "+f"(d[80]), "+f"(d[81]), "+f"(d[82]), \
      "+f"(d[83]), "+f"(d[84]), "+f"(d[85]), "+f"(d[86]), "+f"(d[87]), "+f"(d[88]), "+f"(d[89]), \
      "+f"(d[90]), "+f"(d[91]), "+f"(d[92]), "+f"(d[93]), "+f"(d[94]), "+f"(d[95]), "+f"(d[96]), \
      "+f"(d[97]), "+f"(d[98]), "+f"(d[99]), "+f"(d[100]), "+f"(d[101]), "+f"(d[102]),           \
      "+f"(d[103]), "+f"(d[104]), "+f"(d[105]), "+f"(d[106]), "+f"(d[107]), "+f"(d[108]),        \
      "+f"(d[109]), "+f"(d[110]), "+f"(d[111]), "+f"(d[112]), "+f"(d[113]), "+f"(d[114]),        \
      "+f"(d[115]), "+f"(d[116]), "+f"(d[117]), "+f"(d[118]), "+f"(d[119]), "+f"(d[120]),        \
      "+f"(d[121]), "+f"(d[122]), "+f"(d[123]), "+f"(d[124]), "+f"(d[125]), "+f"(d[126]),        \
      "+f"(d[127])

// TYPE: "bf16" or "f16". What follows the accumulators: A, B, whether to accumulate, B's
// transposition.
#define PANDO_WGMMA_A_IN_REGISTERS(SHAPE, TYPE, REGISTERS, OPERANDS, A, B, ACCUMULATE, TRANSPOSED) \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ACCUMULATE                                      \
               ", 0;\n"                                                                            \
               "wgmma.mma_async.sync.aligned." SHAPE ".f32." TYPE "." TYPE " " REGISTERS A ", " B  \
               ", p, 1, 1, " TRANSPOSED ";\n}\n"                                                   \
               : OPERANDS(d)                                                                       \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(int32_t{accumulate}),     \
                 "n"(int32_t{BTransposed}))
#define PANDO_WGMMA_A_IN_SHARED(SHAPE, TYPE, REGISTERS, OPERANDS, A, B, ACCUMULATE, TRANSPOSED)   \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ACCUMULATE                                     \
               ", 0;\n"                                                                           \
               "wgmma.mma_async.sync.aligned." SHAPE ".f32." TYPE "." TYPE " " REGISTERS A ", " B \
               ", p, 1, 1, 0, " TRANSPOSED ";\n}\n"                                               \
               : OPERANDS(d)                                                                      \
               : "l"(a), "l"(b), "r"(int32_t{accumulate}), "n"(int32_t{BTransposed}))

// Either form, for elements E.
#define PANDO_WGMMA(FORM, SHAPE, ...)        \
  if constexpr (std::is_same_v<E, __half>) { \
    FORM(SHAPE, "f16", __VA_ARGS__);         \
  } else {                                   \
    FORM(SHAPE, "bf16", __VA_ARGS__);        \
  }

/// wgmma.mma_async m64n32k16, D = A * B + D (fp32), A in registers, B in shared memory.
/// BTransposed: B is MN-major (its columns are contiguous).
template <bool BTransposed, class E>
__device__ __forceinline__ void wgmma_m64n32k16(float (&d)[16], const uint32_t (&a)[4], uint64_t b,
                                                bool accumulate, E) {
  PANDO_WGMMA(PANDO_WGMMA_A_IN_REGISTERS, "m64n32k16", PANDO_REGISTERS_16, PANDO_OPERANDS_16,
              "{%16, %17, %18, %19}", "%20", "%21", "%22");
}

/// wgmma.mma_async m64n32k16, D = A * B + D (fp32), A and B in shared memory.
/// BTransposed: B is MN-major (its columns are contiguous).
template <bool BTransposed, class E>
__device__ __forceinline__ void wgmma_m64n32k16(float (&d)[16], uint64_t a, uint64_t b,
                                                bool accumulate, E) {
  PANDO_WGMMA(PANDO_WGMMA_A_IN_SHARED, "m64n32k16", PANDO_REGISTERS_16, PANDO_OPERANDS_16, "%16",
              "%17", "%18", "%19");
}

/// wgmma.mma_async m64n64k16, D = A * B + D (fp32), A in registers, B in shared memory.
/// BTransposed: B is MN-major (its columns are contiguous).
template <bool BTransposed, class E>
__device__ __forceinline__ void wgmma_m64n64k16(float (&d)[32], const uint32_t (&a)[4], uint64_t b,
                                                bool accumulate, E) {
  PANDO_WGMMA(PANDO_WGMMA_A_IN_REGISTERS, "m64n64k16", PANDO_REGISTERS_32, PANDO_OPERANDS_32,
              "{%32, %33, %34, %35}", "%36", "%37", "%38");
}

/// wgmma.mma_async m64n64k16, D = A * B + D (fp32), A and B in shared memory.
/// BTransposed: B is MN-major (its columns are contiguous).
template <bool BTransposed, class E>
__device__ __forceinline__ void wgmma_m64n64k16(float (&d)[32], uint64_t a, uint64_t b,
                                                bool accumulate, E) {
  PANDO_WGMMA(PANDO_WGMMA_A_IN_SHARED, "m64n64k16", PANDO_REGISTERS_32, PANDO_OPERANDS_32, "%32",
              "%33", "%34", "%35");
}

/// wgmma.mma_async m64n128k16, D = A * B + D (fp32), A in registers, B in shared memory.
/// BTransposed: B is MN-major (its columns are contiguous).
template <bool BTransposed, class E>
__device__ __forceinline__ void wgmma_m64n128k16(float (&d)[64], const uint32_t (&a)[4], uint64_t b,
                                                 bool accumulate, E) {
  PANDO_WGMMA(PANDO_WGMMA_A_IN_REGISTERS, "m64n128k16", PANDO_REGISTERS_64, PANDO_OPERANDS_64,
              "{%64, %65, %66, %67}", "%68", "%69", "%70");
}

/// wgmma.mma_async m64n128k16, D = A * B + D (fp32), A and B in shared memory.
/// BTransposed: B is MN-major (its columns are contiguous).
template <bool BTransposed, class E>
__device__ __forceinline__ void wgmma_m64n128k16(float (&d)[64], uint64_t a, uint64_t b,
                                                 bool accumulate, E) {
  PANDO_WGMMA(PANDO_WGMMA_A_IN_SHARED, "m64n128k16", PANDO_REGISTERS_64, PANDO_OPERANDS_64, "%64",
              "%65", "%66", "%67");
}

/// wgmma.mma_async m64n256k16, D = A * B + D (fp32), A in registers, B in shared memory.
/// BTransposed: B is MN-major (its columns are contiguous).
template <bool BTransposed, class E>
__device__ __forceinline__ void wgmma_m64n256k16(float (&d)[128], const uint32_t (&a)[4],
                                                 uint64_t b, bool accumulate, E) {
  PANDO_WGMMA(PANDO_WGMMA_A_IN_REGISTERS, "m64n256k16", PANDO_REGISTERS_128, PANDO_OPERANDS_128,
              "{%128, %129, %130, %131}", "%132", "%133", "%134");
}

#undef PANDO_WGMMA
#undef PANDO_WGMMA_A_IN_REGISTERS
#undef PANDO_WGMMA_A_IN_SHARED
#undef PANDO_LIST_16
#undef PANDO_LIST_32
#undef PANDO_LIST_64
#undef PANDO_LIST_128
#undef PANDO_REGISTERS_16
#undef PANDO_REGISTERS_32
#undef PANDO_REGISTERS_64
#undef PANDO_REGISTERS_128
#undef PANDO_OPERANDS_16
#undef PANDO_OPERANDS_32
#undef PANDO_OPERANDS_64
#undef PANDO_OPERANDS_128

}  // namespace pando::ptx
