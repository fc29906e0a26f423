// Scratch memory of one CPU worker, as the plan promises it and the CPU backend lays it out.
#pragma once

#include <cstdint>

namespace pando {

/// Bytes of per-worker scratch for tiles of `row_tile` packed rows and `kv_tile` tokens.
int64_t cpu_scratch_bytes(int32_t row_tile, int32_t kv_tile, int32_t head_dim);

}  // namespace pando
