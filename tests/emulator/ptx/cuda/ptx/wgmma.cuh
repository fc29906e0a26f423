#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "cuda/ptx/matrix_descriptor.cuh"
#include "emulator/simt.h"

namespace pando::ptx {

inline void wgmma_fence() {}
inline void wgmma_commit_group() { emulator::commit_products(); }
template <int Pending>
void wgmma_wait_group() {
  emulator::wait_products(Pending);
}

template <int Pending>
void wgmma_wait_group_after(float) {
  emulator::wait_products(Pending);
}

template <bool BTransposed, class E, int N>
void issue(float (&d)[N], const uint32_t* a_registers, uint64_t a_shared, uint64_t b,
           bool accumulate, E) {
  emulator::issue_product({.columns = N * 2,
                           .transposed = BTransposed,
                           .fp16 = std::is_same_v<E, __half>,
                           .accumulate = accumulate,
                           .a = a_shared,
                           .b = b},
                          {d, a_registers});
}

// Product `NAME`, A in registers or in shared memory; `N` accumulators a thread.
#define PANDO_PRODUCT(NAME, N)                                                       \
  template <bool BTransposed, class E>                                               \
  void NAME(float(&d)[N], const uint32_t(&a)[4], uint64_t b, bool accumulate, E e) { \
    issue<BTransposed>(d, a, 0, b, accumulate, e);                                   \
  }                                                                                  \
  template <bool BTransposed, class E>                                               \
  void NAME(float(&d)[N], uint64_t a, uint64_t b, bool accumulate, E e) {            \
    issue<BTransposed>(d, nullptr, a, b, accumulate, e);                             \
  }
PANDO_PRODUCT(wgmma_m64n32k16, 16)
PANDO_PRODUCT(wgmma_m64n64k16, 32)
PANDO_PRODUCT(wgmma_m64n128k16, 64)
PANDO_PRODUCT(wgmma_m64n256k16, 128)
#undef PANDO_PRODUCT

}  // namespace pando::ptx
