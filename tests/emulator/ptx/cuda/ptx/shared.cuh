#pragma once

#include <cstdint>

#include "emulator/simt.h"

namespace pando::ptx {

template <class T>
T& dynamic_shared() {
  return *reinterpret_cast<T*>(emulator::current().block->shared);
}
inline uint32_t shared_address(const void* generic) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(generic));
}

}  // namespace pando::ptx
