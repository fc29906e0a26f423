// Shared memory: where it begins, and its addresses (PTX ISA, "Data Movement and Conversion
// Instructions: cvta").
#pragma once

#include <cstdint>

namespace pando::ptx {

/// The dynamic shared memory of the thread block, as a T that lies at a multiple of 1024 bytes.
template <class T>
__device__ __forceinline__ T& dynamic_shared() {
  extern __shared__ __align__(1024) uint8_t s_raw[];
  return *reinterpret_cast<T*>(s_raw);
}

/// cvta.to.shared: an address as matrix descriptors want it, in the shared state space.
__device__ __forceinline__ uint32_t shared_address(const void* generic) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(generic));
}

}  // namespace pando::ptx
