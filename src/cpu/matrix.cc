// Attention of a unit through AMX tiles: bf16 products with fp32 sums.
//
// With 16 rows of the unit in the lanes of a vector and T tokens a tile:
//   S[T][16] = K[T][D] Q^T[D][16]      A = K straight from its page, B = Q^T in pairs of dims
//   softmax down the columns, P rounded to bf16 and transposed in registers
//   O[16][D] += P[16][T] V[T][D]       A = P, B = V in pairs of tokens, interleaved once a tile
// Differences of scores are scaled, in fp32. Tokens are placed by their absolute position, and a
// row never meets another row's data, so a row's bits do not depend on the rest of the tile.
//
// For about a microsecond after a tile instruction, 512-bit vector code runs at half its rate (seen
// on Sapphire Rapids). So the phases are long: all scores of a tile, then all vector work, then all
// outputs, right before the scores of the next tile. Interleaving the two kinds gained nothing.
#include "cpu/matrix.h"

#include "core/check.h"

#if defined(__x86_64__)
#include "cpu/matrix_softmax.h"
#include "cpu/matrix_tiles.h"
#include "cpu/matrix_tokens.h"
#include "cpu/prefetch.h"
#include "plan/scratch.h"

namespace pando {
namespace {

constexpr int32_t kTile = kMatrixTileTokens;
constexpr int32_t kScoreStride = (kTile + 48) * 16;  // of a row block: three spare token blocks
constexpr int32_t kPairStride = kTile * 8;           // of a row block

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

/// S of all rows.
PANDO_AMX void score_phase(const Matrix& m, const TokenTile& t, TilePrefetch& coming) {
  const int32_t q_stride = m.dim_steps * 256;
  for (int32_t row = 0; row < m.row_blocks; row += 2) {
    const uint32_t* const q = m.b.q_pairs + int64_t{row} * q_stride;
    float* const s = m.b.s + int64_t{row} * kScoreStride;
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

/// P of all rows, O rescaled to the new maxima, and V interleaved.
PANDO_AMX void vector_phase(const Matrix& m, TokenTile& t, TilePrefetch& coming) {
  for (int32_t row = 0; row < m.row_blocks; ++row) {
    softmax(m, t, row, m.b.s + int64_t{row} * kScoreStride,
            m.b.p_pairs + int64_t{row} * kPairStride, coming);
    rescale(m, row);
  }
  open_values(m, t, coming);
}

/// O += P V of all rows.
PANDO_AMX void output_phase(const Matrix& m, const TokenTile& t, TilePrefetch& coming) {
  const int32_t steps = t.last_step() - t.first_step();
  const uint32_t* const v = m.b.v_pairs + int64_t{t.first_step()} * 16 * m.padded_dim();
  const int32_t o_stride = m.dim_steps * 512;
  for (int32_t row = 0; row < m.row_blocks; row += 2) {
    const uint32_t* const p = m.b.p_pairs + int64_t{row} * kPairStride + t.first_step() * 256;
    float* const o = m.b.o + int64_t{row} * o_stride;
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
  for (int32_t row = 0; t.reads_stale && row < m.row_blocks; ++row) {
    add_stale(m, t, row, m.b.p_pairs + int64_t{row} * kPairStride);
  }
}

/// Prefetches of the next tile, in portions for the phases of this one.
TilePrefetch prefetch_after(const Matrix& m, const TokenTile& t, int32_t end) {
  const int32_t tokens = fill_coming(m.u, end, kTile, m.b.next_offsets);
  const auto tokens_of = [&](const std::byte* base) {
    return TokenPrefetch(base, m.b.next_offsets, tokens, 2, m.head_dim);
  };
  const int64_t blocks = t.last_block - t.first_block;
  const int64_t vector_steps = blocks * 8 * (m.row_blocks + 1);
  const int64_t tile_steps = blocks * m.row_blocks * m.dim_steps * 2 / 4 * kPrefetchSteps;
  return {tokens_of(m.u.call->k), tokens_of(m.u.call->v), vector_steps + tile_steps};
}

PANDO_AMX void write_rows(const Matrix& m) {
  for (int32_t row = 0; row < m.u.rows; ++row) {
    const float row_sum = m.b.row_sum[row];
    const bool empty = m.b.row_max[row] == kEmptyScore;
    const float lse_ln =
        empty ? kEmptyScore : m.b.row_max[row] * m.u.call->scale_ln + std::log(row_sum);
    const __m512 inverse = _mm512_set1_ps(empty ? 0.0f : 1.0f / row_sum);
    const float* const o = m.b.o + (int64_t{row} / 16 * m.dim_steps * 2 * 16 + row % 16) * 16;
    for (int32_t d = 0; d < m.dim_steps; ++d) {
      const __m512 low = _mm512_mul_ps(_mm512_load_ps(o + d * 512), inverse);
      const __m512 high = _mm512_mul_ps(_mm512_load_ps(o + d * 512 + 256), inverse);
      store_natural(low, high, m.b.row_out + d * 32);
    }
    const RowTarget target = m.u.target(row);
    if (target.lse != nullptr) *target.lse = lse_ln;
    if (target.partial) {
      std::memcpy(target.o, m.b.row_out, m.head_dim * sizeof(float));
    } else {
      store_bf16(m.b.row_out, m.head_dim, reinterpret_cast<uint16_t*>(target.o));
    }
  }
}

}  // namespace

PANDO_AMX void attend_matrix(const Unit& u) {
  // Tile products flush subnormals; with the vector code doing the same, an empty tile changes
  // nothing at all.
  const uint32_t saved_mode = _mm_getcsr();
  _mm_setcsr(saved_mode | 0x8040);
  ScratchCursor cursor(u.scratch);
  const Matrix m(u, cursor);
  pack_queries(m);
  const int32_t padded_rows = m.row_blocks * 16;
  std::fill_n(m.b.row_max, padded_rows, kEmptyScore);
  std::fill_n(m.b.row_sum, padded_rows, 0.0f);
  std::fill_n(m.b.o, int64_t{padded_rows} * m.padded_dim(), 0.0f);
  for (int32_t begin = u.token_begin; begin < u.token_end;) {
    const int32_t end = tile_end(begin, kTile, u.token_end);
    TokenTile t;
    t.seen = m.bounds.seen(begin, end);
    if (t.seen.any_begin < t.seen.any_end) {
      t.base = begin / kTile * kTile;
      t.first_block = (t.seen.any_begin - t.base) / 16;
      t.last_block = (t.seen.any_end - t.base + 15) / 16;
      u.fill_offsets(t.seen.any_begin, t.seen.any_end, m.b.offsets);
      open_keys(m, t);
      TilePrefetch coming = prefetch_after(m, t, end);
      score_phase(m, t, coming);
      vector_phase(m, t, coming);
      output_phase(m, t, coming);
    }
    begin = end;
  }
  write_rows(m);
  _mm_setcsr(saved_mode);
}

}  // namespace pando

#else  // no AMX on this architecture

namespace pando {

void attend_matrix(const Unit&) {
  fail(ErrorCode::kUnsupported, "attend_matrix: this processor has no matrix tiles");
}

}  // namespace pando
#endif
