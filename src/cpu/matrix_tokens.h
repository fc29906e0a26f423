// The tokens of a tile, made ready for matrix products; queries too.
#pragma once

#include "cpu/matrix_vectors.h"
#include "cpu/prefetch.h"
#include "cpu/unit.h"
#include "plan/scratch.h"

namespace pando {

inline constexpr int32_t kScoreStride = (kMatrixTileTokens + 48) * 16;  // of a row block
inline constexpr int32_t kPairStride = kMatrixTileTokens * 8;           // of a row block

/// Sizes and buffers that the stages share.
struct Matrix {
  const Unit& u;
  MatrixScratch b;
  int32_t head_dim;
  int32_t dim_steps;   // of 32 dims
  int32_t row_blocks;  // of 16 rows
  VisibleBounds bounds;

  Matrix(const Unit& unit, ScratchCursor& cursor)
      : u(unit),
        b(cursor, unit.rows, unit.call->head_dim),
        head_dim(unit.call->head_dim),
        dim_steps((head_dim + 31) / 32),
        row_blocks((unit.rows + 15) / 16),
        bounds(fill_visible(unit, row_blocks * 16, b.masks)) {}

  int32_t padded_dim() const { return dim_steps * 32; }
  // Of one block of 16 rows.
  const uint32_t* q_pairs(int32_t row_block) const {
    return b.q_pairs + int64_t{row_block} * dim_steps * 256;
  }
  float* s(int32_t row_block) const { return b.s + int64_t{row_block} * kScoreStride; }
  uint32_t* p_pairs(int32_t row_block) const {
    return b.p_pairs + int64_t{row_block} * kPairStride;
  }
  /// 32 elements of K or V as bf16 from element `at` on, or the first `count` and zeros.
  PANDO_AVX512_INLINE __m512i load(const std::byte* tensor, int64_t at, int32_t count) const {
    return is_fp8() ? load_fp8(tensor + at, count) : load_bf16(tensor + at * 2, count);
  }
  bool is_fp8() const { return u.call->kv_dtype == DType::kE4M3; }
  float* o(int32_t row_block) const { return b.o + int64_t{row_block} * dim_steps * 512; }
};

/// The tokens of one tile: positions relative to `base`, a multiple of the tile.
struct TokenTile {
  int32_t base;
  SeenTokens seen;
  int32_t first_block, last_block;  // blocks of 16 tokens with a token that some row sees
  bool reads_stale = false;         // a token that not every row sees holds a NaN or an infinity
  const void* k_tile[kMatrixTileTokens / 16];
  int64_t k_stride_bytes[kMatrixTileTokens / 16];

  int32_t first_step() const { return first_block / 2; }  // of 32 tokens
  int32_t last_step() const { return (last_block + 1) / 2; }
};

/// Q in pairs of dims, with the sign of the scale.
PANDO_AVX512 inline void pack_queries(const Matrix& m) {
  const float factor = m.u.scale.q_factor;
  for (int32_t block = 0; block < m.row_blocks; ++block) {
    for (int32_t step = 0; step < m.dim_steps; ++step) {
      const int32_t dims = std::min(32, m.head_dim - step * 32);
      __m512i rows[16];
      for (int32_t r = 0; r < 16; ++r) {
        const int32_t row = block * 16 + r;
        rows[r] = row < m.u.rows ? times_sign(load_bf16(m.u.q_row(row) + step * 64, dims), factor)
                                 : _mm512_setzero_si512();
      }
      transpose_16x16(rows);
      uint32_t* const to = m.b.q_pairs + (int64_t{block} * m.dim_steps + step) * 256;
      for (int32_t r = 0; r < 16; ++r) _mm512_store_si512(to + r * 16, rows[r]);
    }
  }
}

/// Finds each block of 16 tokens: in its page when it lies there whole, else gathered.
PANDO_AVX512 inline void open_keys(const Matrix& m, TokenTile& t) {
  const auto* const k = m.u.call->k;
  const bool whole_pages = m.u.call->page_shift >= 4 && m.head_dim % 32 == 0 && !m.is_fp8();
  for (int32_t block = t.first_block; block < t.last_block; ++block) {
    const int32_t begin = std::max(t.base + block * 16, t.seen.any_begin);
    const int32_t end = std::min(t.base + block * 16 + 16, t.seen.any_end);
    const int64_t* const offsets = m.b.offsets + (begin - t.seen.any_begin);
    if (whole_pages && end - begin == 16) {
      t.k_tile[block] = k + offsets[0] * 2;
      t.k_stride_bytes[block] = m.u.call->token_stride * 2;
      continue;
    }
    uint16_t* const to = m.b.k + int64_t{block} * 16 * m.padded_dim();
    for (int32_t i = 0; i < 16; ++i) {
      const int32_t token = t.base + block * 16 + i;
      for (int32_t d = 0; d < m.padded_dim(); d += 32) {
        const __m512i row = token >= begin && token < end
                                ? m.load(k, offsets[token - begin] + d, m.head_dim - d)
                                : _mm512_setzero_si512();
        _mm512_store_si512(to + i * m.padded_dim() + d, row);
      }
    }
    t.k_tile[block] = to;
    t.k_stride_bytes[block] = m.padded_dim() * 2;
  }
}

/// 32 dims of V at `token`, from `d` on, with zeros for what no row may use: tokens that nobody
/// sees, and what is not finite in tokens that only some rows see (add_stale adds that).
PANDO_AVX512_INLINE __m512i value_chunk(const Matrix& m, TokenTile& t, int32_t token, int32_t d) {
  if (token < t.seen.any_begin || token >= t.seen.any_end) return _mm512_setzero_si512();
  const int64_t at = m.b.offsets[token - t.seen.any_begin] + d;
  const __m512i row = m.load(m.u.call->v, at, m.head_dim - d);
  if (token >= t.seen.full_begin && token < t.seen.full_end) return row;
  const __mmask32 finite = finite_bf16(row);
  t.reads_stale |= finite != 0xffffffffu;
  return _mm512_maskz_mov_epi16(finite, row);
}

PANDO_AVX512_INLINE void store_pairs(__m512i even, __m512i odd, uint32_t* to) {
  _mm512_store_si512(to, _mm512_unpacklo_epi16(even, odd));
  _mm512_store_si512(to + 16, _mm512_unpackhi_epi16(even, odd));
}

/// Interleaves V by pairs of tokens.
PANDO_AVX512 inline void open_values(const Matrix& m, TokenTile& t, TilePrefetch& coming) {
  const auto* const v = m.u.call->v;
  const int32_t begin = t.base + t.first_step() * 32;
  const int32_t end = t.base + t.last_step() * 32;
  t.reads_stale = false;
  for (int32_t token = begin; token < end; token += 2) {
    uint32_t* const to = m.b.v_pairs + int64_t{token - t.base} / 2 * m.padded_dim();
    coming.step();
    if (m.head_dim % 32 == 0 && token >= t.seen.full_begin && token + 1 < t.seen.full_end) {
      const int64_t* const at = m.b.offsets + (token - t.seen.any_begin);
      for (int32_t d = 0; d < m.head_dim; d += 32) {
        store_pairs(m.load(v, at[0] + d, 32), m.load(v, at[1] + d, 32), to + d);
      }
      continue;
    }
    for (int32_t d = 0; d < m.padded_dim(); d += 32) {
      store_pairs(value_chunk(m, t, token, d), value_chunk(m, t, token + 1, d), to + d);
    }
  }
}

/// Adds p * v for the elements that open_values left out, to the rows that see their token.
PANDO_AVX512 inline void add_stale(const Matrix& m, const TokenTile& t, int32_t row_block) {
  const uint32_t* const p_pairs = m.p_pairs(row_block);
  for (int32_t token = t.seen.any_begin; token < t.seen.any_end; ++token) {
    if (token >= t.seen.full_begin && token < t.seen.full_end) continue;
    const int64_t at = m.b.offsets[token - t.seen.any_begin];
    const int32_t i = token - t.base;
    for (int32_t r = 0; r < 16; ++r) {
      const int32_t row = row_block * 16 + r;
      if (!m.b.masks.sees(row, token, m.u.call->trees)) continue;
      const uint32_t pair = p_pairs[i / 32 * 256 + r * 16 + i % 32 / 2];
      const float p = bf16_to_float(static_cast<uint16_t>(i % 2 == 0 ? pair : pair >> 16));
      for (int32_t d = 0; d < m.head_dim; ++d) {
        const float value = load_element(m.u.call->v, at + d, m.u.call->kv_dtype);
        if (std::isfinite(value)) continue;
        const int32_t in = d % 8 / 4;                   // which half of the interleaving
        const int32_t column = d % 32 / 8 * 4 + d % 4;  // and where in it
        m.o(row_block)[(d / 32 * 2 + in) * 256 + r * 16 + column] += p * value;
      }
    }
  }
}

}  // namespace pando
