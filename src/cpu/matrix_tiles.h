// Matrix products by AMX tiles: 16 rows of 32 bf16 by 16 pairs of rows of 16 columns, fp32 sums.
//
// For about a microsecond after a tile instruction, 512-bit vector code runs at half its rate (seen
// on Sapphire Rapids). So the phases are long: all scores of a tile of tokens, then all vector
// work, then all outputs, right before the scores of the next tile. Interleaving the two kinds
// gained nothing.
#pragma once

#include <immintrin.h>

#include <atomic>
#include <cstdint>

#include "cpu/matrix_tokens.h"
#include "cpu/prefetch.h"

// clang-format off
#define PANDO_AMX \
  __attribute__((target("amx-tile,amx-bf16,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,fma")))
// clang-format on
#define PANDO_AMX_INLINE PANDO_AMX __attribute__((always_inline)) inline

namespace pando {

/// GCC 12 does not know that a tile load reads memory, so stores before it could be moved past it.
PANDO_AMX_INLINE void tile_fence() { std::atomic_signal_fence(std::memory_order_seq_cst); }

/// Steps of a TilePrefetch beside four tile products.
inline constexpr int32_t kPrefetchSteps = 3;

PANDO_AMX_INLINE void prefetch_some(TilePrefetch& coming) {
  for (int32_t i = 0; i < kPrefetchSteps; ++i) coming.step();
}

/// Tiles of 16 tokens by 32 dims of K, and the distance between tokens.
struct KeyTiles {
  const void* tile[4];
  int64_t stride_bytes[4];
};

/// Blocks of 16 tokens [block, block + count), the last one repeated up to the end of `keys`: the
/// scores of a repeated block land in rows of s that nobody reads.
PANDO_AMX_INLINE KeyTiles key_tiles(const TokenTile& t, int32_t block) {
  KeyTiles keys;
  for (int32_t i = 0; i < 4; ++i) {
    const int32_t from = std::min(block + i, t.last_block - 1);
    keys.tile[i] = t.k_tile[from];
    keys.stride_bytes[i] = t.k_stride_bytes[from];
  }
  return keys;
}

/// s[j][i] = K_i Q_j for two token tiles i and two row blocks j. The tiles of s for one j follow
/// each other, s_stride floats apart from those of the next j.
PANDO_AMX_INLINE void score_tiles_2x2(const KeyTiles& keys, const uint32_t* q, int32_t q_stride,
                                      int32_t dim_steps, float* s, int32_t s_stride,
                                      TilePrefetch& coming) {
  tile_fence();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int32_t d = 0; d < dim_steps; ++d) {
    prefetch_some(coming);
    _tile_loadd(6, q + d * 256, 64);
    _tile_loadd(4, static_cast<const char*>(keys.tile[0]) + d * 64, keys.stride_bytes[0]);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, static_cast<const char*>(keys.tile[1]) + d * 64, keys.stride_bytes[1]);
    _tile_dpbf16ps(1, 5, 6);
    _tile_loadd(7, q + q_stride + d * 256, 64);
    _tile_dpbf16ps(2, 4, 7);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, s, 64);
  _tile_stored(1, s + 256, 64);
  _tile_stored(2, s + s_stride, 64);
  _tile_stored(3, s + s_stride + 256, 64);
}

/// The same for four token tiles and one row block.
PANDO_AMX_INLINE void score_tiles_4x1(const KeyTiles& keys, const uint32_t* q, int32_t dim_steps,
                                      float* s, TilePrefetch& coming) {
  tile_fence();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int32_t d = 0; d < dim_steps; ++d) {
    prefetch_some(coming);
    _tile_loadd(6, q + d * 256, 64);
    _tile_loadd(4, static_cast<const char*>(keys.tile[0]) + d * 64, keys.stride_bytes[0]);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, static_cast<const char*>(keys.tile[1]) + d * 64, keys.stride_bytes[1]);
    _tile_dpbf16ps(1, 5, 6);
    _tile_loadd(7, static_cast<const char*>(keys.tile[2]) + d * 64, keys.stride_bytes[2]);
    _tile_dpbf16ps(2, 7, 6);
    _tile_loadd(4, static_cast<const char*>(keys.tile[3]) + d * 64, keys.stride_bytes[3]);
    _tile_dpbf16ps(3, 4, 6);
  }
  _tile_stored(0, s, 64);
  _tile_stored(1, s + 256, 64);
  _tile_stored(2, s + 512, 64);
  _tile_stored(3, s + 768, 64);
}

/// o[j][i] += P_j V_i for two row blocks j and two blocks i of 16 dims; V is
/// [pair of tokens][v_stride].
PANDO_AMX_INLINE void output_tiles_2x2(const uint32_t* p, int32_t p_stride, const uint32_t* v,
                                       int32_t v_stride, int32_t steps, float* o, int32_t o_stride,
                                       TilePrefetch& coming) {
  tile_fence();
  _tile_loadd(0, o, 64);
  _tile_loadd(1, o + 256, 64);
  _tile_loadd(2, o + o_stride, 64);
  _tile_loadd(3, o + o_stride + 256, 64);
  for (int32_t i = 0; i < steps; ++i) {
    prefetch_some(coming);
    _tile_loadd(4, p + i * 256, 64);
    _tile_loadd(6, v + int64_t{i} * 16 * v_stride, v_stride * 4);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, v + int64_t{i} * 16 * v_stride + 16, v_stride * 4);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, p + p_stride + i * 256, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, o, 64);
  _tile_stored(1, o + 256, 64);
  _tile_stored(2, o + o_stride, 64);
  _tile_stored(3, o + o_stride + 256, 64);
}

/// The same for one row block and two, or with `four` four, blocks of 16 dims.
template <bool kFour>
PANDO_AMX_INLINE void output_tiles_1xn(const uint32_t* p, const uint32_t* v, int32_t v_stride,
                                       int32_t steps, float* o, TilePrefetch& coming) {
  tile_fence();
  _tile_loadd(0, o, 64);
  _tile_loadd(1, o + 256, 64);
  if constexpr (kFour) {
    _tile_loadd(2, o + 512, 64);
    _tile_loadd(3, o + 768, 64);
  }
  for (int32_t i = 0; i < steps; ++i) {
    prefetch_some(coming);
    const uint32_t* const pairs = v + int64_t{i} * 16 * v_stride;
    _tile_loadd(4, p + i * 256, 64);
    _tile_loadd(6, pairs, v_stride * 4);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, pairs + 16, v_stride * 4);
    _tile_dpbf16ps(1, 4, 7);
    if constexpr (kFour) {
      _tile_loadd(5, pairs + 32, v_stride * 4);
      _tile_dpbf16ps(2, 4, 5);
      _tile_loadd(6, pairs + 48, v_stride * 4);
      _tile_dpbf16ps(3, 4, 6);
    }
  }
  _tile_stored(0, o, 64);
  _tile_stored(1, o + 256, 64);
  if constexpr (kFour) {
    _tile_stored(2, o + 512, 64);
    _tile_stored(3, o + 768, 64);
  }
}

/// The two matrix products of attention by AMX tiles.
struct TileProducts {
  /// Tokens taken at once, on an absolute grid of kv positions.
  static constexpr int32_t kTile = kMatrixTileTokens;

  /// Steps of a TilePrefetch that `scores` and `outputs` take together.
  static int64_t prefetch_steps(const Matrix& m, const TokenTile& t) {
    const int64_t blocks = t.last_block - t.first_block;
    return blocks * m.row_blocks * m.dim_steps * 2 / 4 * kPrefetchSteps;
  }

  /// S of all rows.
  PANDO_AMX static void scores(const Matrix& m, const TokenTile& t, TilePrefetch& coming) {
    const int32_t q_stride = m.dim_steps * 256;
    for (int32_t row = 0; row < m.row_blocks; row += 2) {
      const uint32_t* const q = m.q_pairs(row);
      float* const s = m.s(row);
      if (row + 1 < m.row_blocks) {
        for (int32_t block = t.first_block; block < t.last_block; block += 2) {
          score_tiles_2x2(key_tiles(t, block), q, q_stride, m.dim_steps, s + block * 256,
                          kScoreStride, coming);
        }
      } else {
        for (int32_t block = t.first_block; block < t.last_block; block += 4) {
          score_tiles_4x1(key_tiles(t, block), q, m.dim_steps, s + block * 256, coming);
        }
      }
    }
  }

  /// O += P V of all rows.
  PANDO_AMX static void outputs(const Matrix& m, const TokenTile& t, TilePrefetch& coming) {
    const int32_t steps = t.last_step() - t.first_step();
    const uint32_t* const v = m.b.v_pairs + int64_t{t.first_step()} * 16 * m.padded_dim();
    const int32_t o_stride = m.dim_steps * 512;
    for (int32_t row = 0; row < m.row_blocks; row += 2) {
      const uint32_t* const p = m.p_pairs(row) + t.first_step() * 256;
      float* const o = m.o(row);
      if (row + 1 < m.row_blocks) {
        for (int32_t d = 0; d < m.dim_steps; ++d) {
          output_tiles_2x2(p, kPairStride, v + d * 32, m.padded_dim(), steps, o + d * 512, o_stride,
                           coming);
        }
        continue;
      }
      int32_t d = 0;
      for (; d + 2 <= m.dim_steps; d += 2) {
        output_tiles_1xn<true>(p, v + d * 32, m.padded_dim(), steps, o + d * 512, coming);
      }
      if (d < m.dim_steps) {
        output_tiles_1xn<false>(p, v + d * 32, m.padded_dim(), steps, o + d * 512, coming);
      }
    }
  }
};

}  // namespace pando
