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
#include "cpu/prefetch.h"
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
  bool reads_stale = false;         // a token that not every row sees holds a NaN or an infinity
  const void* k_tile[kTile / 16];
  int64_t k_stride_bytes[kTile / 16];

  int32_t first_step() const { return first_block / 2; }  // of 32 tokens
  int32_t last_step() const { return (last_block + 1) / 2; }
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

/// 32 dims of V at `token`, from `d` on, with zeros for what no row may use: tokens that nobody
/// sees, and what is not finite in tokens that only some rows see (add_stale adds that).
PANDO_AMX_INLINE __m512i value_chunk(const Matrix& m, TokenTile& t, int32_t token, int32_t d) {
  if (token < t.seen.any_begin || token >= t.seen.any_end) return _mm512_setzero_si512();
  const int64_t at = m.b.offsets[token - t.seen.any_begin] + d;
  const __m512i row = load_bf16(m.u.call->v + at * 2, m.head_dim - d);
  if (token >= t.seen.full_begin && token < t.seen.full_end) return row;
  const __mmask32 finite = finite_bf16(row);
  t.reads_stale |= finite != 0xffffffffu;
  return _mm512_maskz_mov_epi16(finite, row);
}

PANDO_AMX_INLINE void store_pairs(__m512i even, __m512i odd, uint32_t* to) {
  _mm512_store_si512(to, _mm512_unpacklo_epi16(even, odd));
  _mm512_store_si512(to + 16, _mm512_unpackhi_epi16(even, odd));
}

/// Interleaves V by pairs of tokens.
PANDO_AMX void open_values(const Matrix& m, TokenTile& t, TilePrefetch& coming) {
  const auto* const v = m.u.call->v;
  const int32_t begin = t.base + t.first_step() * 32;
  const int32_t end = t.base + t.last_step() * 32;
  t.reads_stale = false;
  for (int32_t token = begin; token < end; token += 2) {
    uint32_t* const to = m.b.v_pairs + int64_t{token - t.base} / 2 * m.padded_dim();
    coming.step();
    if (m.head_dim % 32 == 0 && token >= t.seen.full_begin && token + 1 < t.seen.full_end) {
      const int64_t* const at = m.b.offsets + (token - t.seen.any_begin);
      const std::byte* const even = v + at[0] * 2;
      const std::byte* const odd = v + at[1] * 2;
      for (int32_t d = 0; d < m.head_dim; d += 32) {
        store_pairs(_mm512_loadu_si512(even + d * 2), _mm512_loadu_si512(odd + d * 2), to + d);
      }
      continue;
    }
    for (int32_t d = 0; d < m.padded_dim(); d += 32) {
      store_pairs(value_chunk(m, t, token, d), value_chunk(m, t, token + 1, d), to + d);
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

/// The softmax of 16 rows over one tile of tokens.
class Softmax {
 public:
  PANDO_AMX_INLINE Softmax(const Matrix& m, const TokenTile& t, int32_t row_block, const float* s)
      : s_(s),
        base_(t.base),
        begin_(t.seen.any_begin - t.base),
        end_(t.seen.any_end - t.base),
        full_begin_(t.seen.full_begin - t.base),
        full_end_(t.seen.full_end - t.base),
        begins_(_mm512_load_si512(m.b.visible_begin + row_block * 16)),
        ends_(_mm512_load_si512(m.b.visible_end + row_block * 16)),
        scale_log2_(_mm512_set1_ps(m.u.call->scale * kLog2E)) {}

  /// The larger of `top` and the tile's scores, in log2 units.
  PANDO_AMX_INLINE __m512 max(__m512 top) const {
    // Four running maxima, because one would wait for itself.
    __m512 tops[4] = {top, top, top, top};
    int32_t i = begin_;
    for (; i < end_ && (i < full_begin_ || i % 4 != 0); ++i)
      tops[0] = _mm512_max_ps(tops[0], score(i));
    for (; i + 4 <= full_end_; i += 4) {
      for (int32_t j = 0; j < 4; ++j) {
        const __m512 value = _mm512_mul_ps(_mm512_load_ps(s_ + (i + j) * 16), scale_log2_);
        tops[j] = _mm512_max_ps(tops[j], value);
      }
    }
    for (; i < end_; ++i) tops[0] = _mm512_max_ps(tops[0], score(i));
    return _mm512_max_ps(_mm512_max_ps(tops[0], tops[1]), _mm512_max_ps(tops[2], tops[3]));
  }

  /// P of the 32 tokens from `first` on, in pairs of tokens; adds to `sum`.
  PANDO_AMX_INLINE void exp(int32_t first, __m512 minus_top, __m512& sum, __m512i (&pairs)[16],
                            TilePrefetch& coming) const {
    if (first >= full_begin_ && first + 32 <= full_end_) {
      for (int32_t j = 0; j < 16; ++j) {
        coming.step();
        const float* const at = s_ + (first + j * 2) * 16;
        const __m512 even = exp2_16(_mm512_fmadd_ps(_mm512_load_ps(at), scale_log2_, minus_top));
        const __m512 odd =
            exp2_16(_mm512_fmadd_ps(_mm512_load_ps(at + 16), scale_log2_, minus_top));
        sum = _mm512_add_ps(_mm512_add_ps(sum, even), odd);
        pairs[j] = bf16_pairs(even, odd);
      }
      return;
    }
    for (int32_t j = 0; j < 16; ++j) {
      coming.step();
      __m512 p[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
      for (int32_t k = 0; k < 2; ++k) {
        const int32_t i = first + j * 2 + k;
        if (i < begin_ || i >= end_) continue;
        const __m512 x = _mm512_fmadd_ps(_mm512_load_ps(s_ + i * 16), scale_log2_, minus_top);
        p[k] = exp2_16(visible(i, x));
        sum = _mm512_add_ps(sum, p[k]);
      }
      pairs[j] = bf16_pairs(p[0], p[1]);
    }
  }

 private:
  PANDO_AMX_INLINE __m512 score(int32_t i) const {
    return visible(i, _mm512_mul_ps(_mm512_load_ps(s_ + i * 16), scale_log2_));
  }
  /// `x` where the row sees token i, else -inf, whatever x is.
  PANDO_AMX_INLINE __m512 visible(int32_t i, __m512 x) const {
    if (i >= full_begin_ && i < full_end_) return x;
    const __m512i token = _mm512_set1_epi32(base_ + i);
    const __mmask16 seen =
        _mm512_cmple_epi32_mask(begins_, token) & _mm512_cmpgt_epi32_mask(ends_, token);
    return _mm512_mask_mov_ps(_mm512_set1_ps(kMinusInf), seen, x);
  }

  const float* s_;
  int32_t base_, begin_, end_, full_begin_, full_end_;
  __m512i begins_, ends_;
  __m512 scale_log2_;
};

/// Updates the running maximum, sum and alpha of 16 rows, and writes P in pairs of tokens.
PANDO_AMX void softmax(const Matrix& m, const TokenTile& t, int32_t row_block, const float* s,
                       uint32_t* p_pairs, TilePrefetch& coming) {
  const int32_t first = row_block * 16;
  const Softmax tile(m, t, row_block, s);
  const __m512 old_max = _mm512_load_ps(m.b.row_max + first);
  const __m512 top = tile.max(old_max);
  // A row that has seen nothing yet subtracts 0 instead of -inf, so that 2^(-inf) = 0 follows.
  const __mmask16 something = _mm512_cmp_ps_mask(top, _mm512_set1_ps(kMinusInf), _CMP_NEQ_UQ);
  const __m512 minus_top = _mm512_maskz_sub_ps(something, _mm512_setzero_ps(), top);
  const __m512 alpha = exp2_16(_mm512_add_ps(old_max, minus_top));
  __m512 sum = _mm512_mul_ps(_mm512_load_ps(m.b.row_sum + first), alpha);
  for (int32_t step = t.first_step(); step < t.last_step(); ++step) {
    __m512i pairs[16];
    tile.exp(step * 32, minus_top, sum, pairs, coming);
    transpose_16x16(pairs);
    for (int32_t r = 0; r < 16; ++r) {
      _mm512_store_si512(p_pairs + (step * 16 + r) * 16, pairs[r]);
    }
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

constexpr int32_t kScoreStride = (kTile + 48) * 16;  // room for three repeated blocks
constexpr int32_t kPairStride = kTile * 8;

/// One kv tile for 32 rows, from row block `first` on.
PANDO_AMX void attend_two_blocks(const Matrix& m, const TokenTile& t, int32_t first,
                                 TilePrefetch& coming) {
  const int32_t block_stride = m.dim_steps * 256;
  const uint32_t* const q = m.b.q_pairs + int64_t{first} * block_stride;
  for (int32_t block = t.first_block; block < t.last_block; block += 2) {
    score_tiles_2x2(key_tiles(t, block), q, block_stride, m.dim_steps, m.b.s + block * 256,
                    kScoreStride);
  }
  for (int32_t i = 0; i < 2; ++i) {
    softmax(m, t, first + i, m.b.s + i * kScoreStride, m.b.p_pairs + i * kPairStride, coming);
    rescale(m, first + i);
  }
  const uint32_t* const p = m.b.p_pairs + t.first_step() * 256;
  const uint32_t* const v = m.b.v_pairs + int64_t{t.first_step()} * 16 * m.padded_dim();
  float* const o = m.b.o + int64_t{first} * m.dim_steps * 512;
  for (int32_t d = 0; d < m.dim_steps; ++d) {
    output_tiles_2x2(p, kPairStride, v + d * 32, m.padded_dim(), t.last_step() - t.first_step(),
                     o + d * 512, m.dim_steps * 512);
  }
}

/// The same for 16 rows.
PANDO_AMX void attend_one_block(const Matrix& m, const TokenTile& t, int32_t first,
                                TilePrefetch& coming) {
  const uint32_t* const q = m.b.q_pairs + int64_t{first} * m.dim_steps * 256;
  for (int32_t block = t.first_block; block < t.last_block; block += 4) {
    score_tiles_4x1(key_tiles(t, block), q, m.dim_steps, m.b.s + block * 256);
  }
  softmax(m, t, first, m.b.s, m.b.p_pairs, coming);
  rescale(m, first);
  const uint32_t* const p = m.b.p_pairs + t.first_step() * 256;
  const uint32_t* const v = m.b.v_pairs + int64_t{t.first_step()} * 16 * m.padded_dim();
  const int32_t steps = t.last_step() - t.first_step();
  float* const o = m.b.o + int64_t{first} * m.dim_steps * 512;
  int32_t d = 0;
  for (; d + 2 <= m.dim_steps; d += 2) {
    output_tiles_1xn<true>(p, v + d * 32, m.padded_dim(), steps, o + d * 512);
  }
  if (d < m.dim_steps) output_tiles_1xn<false>(p, v + d * 32, m.padded_dim(), steps, o + d * 512);
}

PANDO_AMX void attend_tile(const Matrix& m, const TokenTile& t, TilePrefetch& coming) {
  for (int32_t block = 0; block < m.row_blocks; block += 2) {
    const int32_t blocks = std::min(2, m.row_blocks - block);
    if (blocks == 2) {
      attend_two_blocks(m, t, block, coming);
    } else {
      attend_one_block(m, t, block, coming);
    }
    for (int32_t i = 0; t.reads_stale && i < blocks; ++i) {
      add_stale(m, t, block + i, m.b.p_pairs + i * kPairStride);
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
      const int32_t coming_tokens = fill_coming(u, end, kTile, m.b.next_offsets);
      const auto tokens_of = [&](const std::byte* base) {
        return TokenPrefetch(base, m.b.next_offsets, coming_tokens, 2, m.head_dim);
      };
      TilePrefetch coming(tokens_of(u.call->k), tokens_of(u.call->v),
                          (t.last_block - t.first_block) * 8 * (m.row_blocks + 1));
      open_values(m, t, coming);
      attend_tile(m, t, coming);
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
