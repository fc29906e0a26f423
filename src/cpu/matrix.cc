// Attention of a unit through AMX tiles: bf16 products with fp32 sums.
//
// With 16 rows of the unit in the lanes of a vector and T tokens a tile:
//   S[T][16] = K[T][D] Q^T[D][16]      A = K straight from its page, B = Q^T in pairs of dims
//   softmax down the columns, P rounded to bf16 and transposed in registers
//   O[16][D] += P[16][T] V[T][D]       A = P, B = V in pairs of tokens, interleaved once a tile
// Scores are scaled in fp32. Tokens are placed by their absolute position, and a row never meets
// another row's data, so a row's bits do not depend on the rest of the tile.
#include "cpu/matrix.h"

#include "core/check.h"

#if defined(__x86_64__)
#include "cpu/matrix_tiles.h"
#include "cpu/matrix_vectors.h"
#include "plan/scratch.h"

namespace pando {
namespace {

constexpr int32_t kTile = kMatrixTileTokens;
constexpr float kMinusInf = -std::numeric_limits<float>::infinity();
constexpr float kLn2 = 0.693147180559945309f;
constexpr float kLog2E = 1.44269504088896341f;

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
        bounds(fill_visible(unit, row_blocks * 16, b.visible_begin, b.visible_end)) {}

  int32_t padded_dim() const { return dim_steps * 32; }
};

/// The tokens of one tile: positions relative to `base`, a multiple of kTile.
struct TokenTile {
  int32_t base;
  SeenTokens seen;
  int32_t first_block, last_block;  // blocks of 16 tokens with a token that some row sees
  bool reads_stale;                 // a token that not every row sees holds a NaN or an infinity
  const void* k_tile[kTile / 16];
  int64_t k_stride_bytes[kTile / 16];
};

PANDO_AMX void pack_queries(const Matrix& m) {
  for (int32_t block = 0; block < m.row_blocks; ++block) {
    for (int32_t step = 0; step < m.dim_steps; ++step) {
      const int32_t dims = std::min(32, m.head_dim - step * 32);
      __m512i rows[16];
      for (int32_t r = 0; r < 16; ++r) {
        const int32_t row = block * 16 + r;
        rows[r] =
            row < m.u.rows ? load_bf16(m.u.q_row(row) + step * 64, dims) : _mm512_setzero_si512();
      }
      transpose_16x16(rows);
      uint32_t* const to = m.b.q_pairs + (int64_t{block} * m.dim_steps + step) * 256;
      for (int32_t r = 0; r < 16; ++r) _mm512_store_si512(to + r * 16, rows[r]);
    }
  }
}

/// Finds each block of 16 tokens: in its page when it lies there whole, else gathered.
PANDO_AMX void open_keys(const Matrix& m, TokenTile& t) {
  const auto* const k = m.u.call->k;
  const bool whole_pages = m.u.call->page_shift >= 4 && m.head_dim % 32 == 0;
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
                                ? load_bf16(k + (offsets[token - begin] + d) * 2, m.head_dim - d)
                                : _mm512_setzero_si512();
        _mm512_store_si512(to + i * m.padded_dim() + d, row);
      }
    }
    t.k_tile[block] = to;
    t.k_stride_bytes[block] = m.padded_dim() * 2;
  }
}

/// Interleaves V by pairs of tokens. Tokens that nobody sees are zero, and so is what is not finite
/// in tokens that only some rows see: those elements are added by add_stale, row by row.
PANDO_AMX void open_values(const Matrix& m, TokenTile& t) {
  const auto* const v = m.u.call->v;
  const int32_t steps_begin = t.first_block / 2 * 32;
  const int32_t steps_end = (t.last_block + 1) / 2 * 32;
  t.reads_stale = false;
  for (int32_t i = steps_begin; i < steps_end; i += 2) {
    for (int32_t d = 0; d < m.padded_dim(); d += 32) {
      __m512i row[2];
      for (int32_t j = 0; j < 2; ++j) {
        const int32_t token = t.base + i + j;
        row[j] = _mm512_setzero_si512();
        if (token < t.seen.any_begin || token >= t.seen.any_end) continue;
        row[j] = load_bf16(v + (m.b.offsets[token - t.seen.any_begin] + d) * 2, m.head_dim - d);
        if (token < t.seen.full_begin || token >= t.seen.full_end) {
          const __mmask32 finite = finite_bf16(row[j]);
          t.reads_stale |= finite != 0xffffffffu;
          row[j] = _mm512_maskz_mov_epi16(finite, row[j]);
        }
      }
      uint32_t* const to = m.b.v_pairs + int64_t{i} / 2 * m.padded_dim() + d;
      _mm512_store_si512(to, _mm512_unpacklo_epi16(row[0], row[1]));
      _mm512_store_si512(to + 16, _mm512_unpackhi_epi16(row[0], row[1]));
    }
  }
}

/// Adds p * v for the elements that open_values left out, to the rows that see their token.
PANDO_AMX void add_stale(const Matrix& m, const TokenTile& t, int32_t row_block,
                         const uint32_t* p_pairs) {
  for (int32_t token = t.seen.any_begin; token < t.seen.any_end; ++token) {
    if (token >= t.seen.full_begin && token < t.seen.full_end) continue;
    const int64_t at = m.b.offsets[token - t.seen.any_begin];
    const auto* const v = reinterpret_cast<const uint16_t*>(m.u.call->v) + at;
    const int32_t i = token - t.base;
    for (int32_t r = 0; r < 16; ++r) {
      const int32_t row = row_block * 16 + r;
      if (token < m.b.visible_begin[row] || token >= m.b.visible_end[row]) continue;
      const uint32_t pair = p_pairs[i / 32 * 256 + r * 16 + i % 32 / 2];
      const float p = bf16_to_float(static_cast<uint16_t>(i % 2 == 0 ? pair : pair >> 16));
      for (int32_t d = 0; d < m.head_dim; ++d) {
        const float value = bf16_to_float(v[d]);
        if (std::isfinite(value)) continue;
        const int32_t in = d % 8 / 4;                   // which half of the interleaving
        const int32_t column = d % 32 / 8 * 4 + d % 4;  // and where in it
        const int64_t tile = int64_t{row_block} * m.dim_steps * 2 + d / 32 * 2 + in;
        m.b.o[tile * 256 + r * 16 + column] += p * value;
      }
    }
  }
}

/// Softmax of 16 rows over one tile; s becomes P in pairs of tokens.
PANDO_AMX void softmax(const Matrix& m, const TokenTile& t, int32_t row_block, float* s,
                       uint32_t* p_pairs) {
  const int32_t first = row_block * 16;
  const __m512i begins = _mm512_load_si512(m.b.visible_begin + first);
  const __m512i ends = _mm512_load_si512(m.b.visible_end + first);
  const __m512 minus_inf = _mm512_set1_ps(kMinusInf);
  const __m512 scale_log2 = _mm512_set1_ps(m.u.call->scale * kLog2E);
  const __m512 old_max = _mm512_load_ps(m.b.row_max + first);
  const int32_t begin = t.seen.any_begin - t.base;
  const int32_t end = t.seen.any_end - t.base;
  const int32_t full_begin = t.seen.full_begin - t.base;
  const int32_t full_end = t.seen.full_end - t.base;
  __m512 top = old_max;
  for (int32_t i = begin; i < end; ++i) {
    __m512 score = _mm512_mul_ps(_mm512_load_ps(s + i * 16), scale_log2);
    if (i < full_begin || i >= full_end) {
      const __m512i token = _mm512_set1_epi32(t.base + i);
      const __mmask16 seen =
          _mm512_cmple_epi32_mask(begins, token) & _mm512_cmpgt_epi32_mask(ends, token);
      score = _mm512_mask_mov_ps(minus_inf, seen, score);
    }
    _mm512_store_ps(s + i * 16, score);
    top = _mm512_max_ps(top, score);
  }
  // A row that has seen nothing yet subtracts 0 instead of -inf, so that 2^(-inf) = 0 follows.
  const __mmask16 nothing = _mm512_cmp_ps_mask(top, minus_inf, _CMP_EQ_OQ);
  const __m512 finite_top = _mm512_mask_mov_ps(top, nothing, _mm512_setzero_ps());
  const __m512 alpha = exp2_16(_mm512_sub_ps(old_max, finite_top));
  __m512 sum = _mm512_mul_ps(_mm512_load_ps(m.b.row_sum + first), alpha);
  const int32_t steps_begin = t.first_block / 2 * 32;
  const int32_t steps_end = (t.last_block + 1) / 2 * 32;
  for (int32_t step = steps_begin; step < steps_end; step += 32) {
    __m512i pairs[16];
    for (int32_t j = 0; j < 16; ++j) {
      __m512 p[2];
      for (int32_t k = 0; k < 2; ++k) {
        const int32_t i = step + j * 2 + k;
        p[k] = _mm512_setzero_ps();
        if (i < begin || i >= end) continue;
        p[k] = exp2_16(_mm512_sub_ps(_mm512_load_ps(s + i * 16), finite_top));
        sum = _mm512_add_ps(sum, p[k]);
      }
      pairs[j] = bf16_pairs(p[0], p[1]);
    }
    transpose_16x16(pairs);
    for (int32_t r = 0; r < 16; ++r)
      _mm512_store_si512(p_pairs + (step / 32 * 16 + r) * 16, pairs[r]);
  }
  _mm512_store_ps(m.b.row_max + first, top);
  _mm512_store_ps(m.b.row_sum + first, sum);
  _mm512_store_ps(m.b.alpha + first, alpha);
}

/// Multiplies the rows of O whose maximum has moved.
PANDO_AMX void rescale(const Matrix& m, int32_t row_block) {
  const __m512 alpha = _mm512_load_ps(m.b.alpha + row_block * 16);
  uint32_t moved = _mm512_cmp_ps_mask(alpha, _mm512_set1_ps(1.0f), _CMP_NEQ_UQ);
  float* const o = m.b.o + int64_t{row_block} * m.dim_steps * 512;
  for (; moved != 0; moved &= moved - 1) {
    const int32_t r = __builtin_ctz(moved);
    const __m512 factor = _mm512_set1_ps(m.b.alpha[row_block * 16 + r]);
    for (int32_t tile = 0; tile < m.dim_steps * 2; ++tile) {
      float* const at = o + tile * 256 + r * 16;
      _mm512_store_ps(at, _mm512_mul_ps(_mm512_load_ps(at), factor));
    }
  }
}

/// One kv tile for one or two blocks of 16 rows, from row block `first` on.
PANDO_AMX void block_rows(const Matrix& m, const TokenTile& t, int32_t first, int32_t blocks) {
  constexpr int32_t kScoreStride = kTile * 16;
  constexpr int32_t kPairStride = kTile * 8;
  const uint32_t* const q = m.b.q_pairs + int64_t{first} * m.dim_steps * 256;
  const int32_t q_stride = m.dim_steps * 256;
  for (int32_t block = t.first_block; block < t.last_block;) {
    const bool two = block + 1 < t.last_block;
    const KeyTiles keys{{t.k_tile[block], t.k_tile[two ? block + 1 : block]},
                        {t.k_stride_bytes[block], t.k_stride_bytes[two ? block + 1 : block]}};
    float* const s = m.b.s + block * 256;
    if (blocks == 2) {
      two ? score_tiles<2, 2>(keys, q, q_stride, m.dim_steps, s, kScoreStride)
          : score_tiles<1, 2>(keys, q, q_stride, m.dim_steps, s, kScoreStride);
    } else {
      two ? score_tiles<2, 1>(keys, q, q_stride, m.dim_steps, s, kScoreStride)
          : score_tiles<1, 1>(keys, q, q_stride, m.dim_steps, s, kScoreStride);
    }
    block += two ? 2 : 1;
  }
  for (int32_t i = 0; i < blocks; ++i) {
    softmax(m, t, first + i, m.b.s + i * kScoreStride, m.b.p_pairs + i * kPairStride);
    rescale(m, first + i);
  }
  const int32_t step_begin = t.first_block / 2;
  const int32_t steps = (t.last_block + 1) / 2 - step_begin;
  const uint32_t* const p = m.b.p_pairs + step_begin * 256;
  const uint32_t* const v = m.b.v_pairs + int64_t{step_begin} * 16 * m.padded_dim();
  float* const o = m.b.o + int64_t{first} * m.dim_steps * 512;
  for (int32_t d = 0; d < m.dim_steps; ++d) {
    if (blocks == 2) {
      output_tiles<2>(p, kPairStride, v + d * 32, m.padded_dim(), steps, o + d * 512,
                      m.dim_steps * 512);
    } else {
      output_tiles<1>(p, kPairStride, v + d * 32, m.padded_dim(), steps, o + d * 512,
                      m.dim_steps * 512);
    }
  }
  if (t.reads_stale) {
    for (int32_t i = 0; i < blocks; ++i) {
      add_stale(m, t, first + i, m.b.p_pairs + i * kPairStride);
    }
  }
}

PANDO_AMX void write_rows(const Matrix& m) {
  for (int32_t row = 0; row < m.u.rows; ++row) {
    const float row_sum = m.b.row_sum[row];
    const bool empty = m.b.row_max[row] == kMinusInf;
    const float lse_ln = empty ? kMinusInf : m.b.row_max[row] * kLn2 + std::log(row_sum);
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
  std::fill_n(m.b.row_max, padded_rows, kMinusInf);
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
      open_values(m, t);
      for (int32_t block = 0; block < m.row_blocks; block += 2) {
        block_rows(m, t, block, std::min(2, m.row_blocks - block));
      }
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
