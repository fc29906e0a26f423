#pragma once

#include <cuda.h>

namespace pando::ptx {

inline void prefetch_tensormap(const CUtensorMap*) {}
inline void prefetch_l2(const void*) {}

}  // namespace pando::ptx
