#include "plan/scratch.h"

namespace pando {
namespace {

template <typename Buffers>
int64_t bytes_of(int32_t rows, int32_t head_dim) {
  ScratchCursor cursor(nullptr);
  Buffers(cursor, rows, head_dim);
  return cursor.bytes();
}

}  // namespace

int64_t cpu_scratch_bytes(int32_t row_tile, int32_t /*kv_tile*/, int32_t head_dim) {
  return std::max({bytes_of<WideScratch>(row_tile, head_dim),
                   bytes_of<NarrowScratch>(row_tile, head_dim),
                   bytes_of<MatrixScratch>(row_tile, head_dim)});
}

}  // namespace pando
