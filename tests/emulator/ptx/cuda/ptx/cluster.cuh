#pragma once

#include <cstddef>
#include <cstdint>

#include "emulator/simt.h"

namespace pando::ptx {

inline void cluster_arrive() { emulator::cluster_arrive(); }
inline void cluster_wait() { emulator::cluster_wait(); }
inline uint32_t in_thread_block(const void* mine, uint32_t rank) {
  return emulator::in_thread_block(static_cast<const std::byte*>(mine), rank);
}
inline void mbarrier_arrive_in(uint32_t barrier) {
  emulator::mbarrier_arrive(emulator::in_cluster<uint64_t>(barrier), 0);
}
inline void st_async(uint32_t to, float4 value, uint32_t barrier) {
  float4* const place = emulator::in_cluster<float4>(to);
  uint64_t* const complete = emulator::in_cluster<uint64_t>(barrier);
  emulator::current().block->grid->enqueue([=] {
    *place = value;
    emulator::mbarrier_receive(complete, sizeof(value));
  });
}

}  // namespace pando::ptx
