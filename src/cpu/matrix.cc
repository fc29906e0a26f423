// Attention of a unit through bf16 matrix products with fp32 sums: AMX tiles, or AVX-512 dots.
//
// With 16 rows of the unit in the lanes of a vector and T tokens a tile:
//   S[T][16] = K[T][D] Q^T[D][16]      A = K straight from its page, B = Q^T in pairs of dims
//   softmax down the columns, P rounded to bf16 and transposed in registers
//   O[16][D] += P[16][T] V[T][D]       A = P, B = V in pairs of tokens, interleaved once a tile
// Differences of scores are scaled, in fp32. Tokens are placed by their absolute position, and a
// row never meets another row's data, so a row's bits do not depend on the rest of the tile.
#include "cpu/matrix.h"

#include "core/check.h"

#if defined(__x86_64__)
#include "cpu/matrix_dots.h"
#include "cpu/matrix_softmax.h"
#include "cpu/matrix_tiles.h"
#include "cpu/matrix_tokens.h"
#include "cpu/prefetch.h"
#include "plan/scratch.h"

namespace pando {
namespace {

/// P of all rows, O rescaled to the new maxima, and V interleaved.
PANDO_AVX512 void vector_phase(const Matrix& m, TokenTile& t, TilePrefetch& coming) {
  for (int32_t row = 0; row < m.row_blocks; ++row) {
    softmax(m, t, row, coming);
    rescale(m, row);
  }
  open_values(m, t, coming);
}

/// Prefetches of the next tile, in portions for the phases of this one.
template <class Products>
TilePrefetch prefetch_after(const Matrix& m, const TokenTile& t, int32_t end) {
  const int32_t tokens = fill_coming(m.u, end, Products::kTile, m.b.next_offsets);
  const auto tokens_of = [&](const std::byte* base) {
    return TokenPrefetch(base, m.b.next_offsets, tokens, m.u.kv_element_bytes(), m.head_dim);
  };
  const int64_t vector_steps = int64_t{t.last_block - t.first_block} * 8 * (m.row_blocks + 1);
  return {tokens_of(m.u.call->k), tokens_of(m.u.call->v),
          vector_steps + Products::prefetch_steps(m, t)};
}

PANDO_AVX512 void write_rows(const Matrix& m) {
  for (int32_t row = 0; row < m.u.rows; ++row) {
    const float row_sum = m.b.row_sum[row];
    const bool empty = row_sum == 0;  // a maximum may pass a NaN over, a sum never does
    float lse_ln = empty ? kEmptyScore : m.b.row_max[row] * m.u.scale.scale_ln + std::log(row_sum);
    const __m512 inverse = _mm512_set1_ps(empty ? 0.0f : m.u.value_scale / row_sum);
    const float* const o = m.o(row / 16) + row % 16 * 16;
    for (int32_t d = 0; d < m.dim_steps; ++d) {
      const __m512 low = _mm512_mul_ps(_mm512_load_ps(o + d * 512), inverse);
      const __m512 high = _mm512_mul_ps(_mm512_load_ps(o + d * 512 + 256), inverse);
      store_natural(low, high, m.b.row_out + d * 32);
    }
    const RowTarget target = m.u.target(row);
    target.add_sink(m.b.row_out, m.head_dim, lse_ln);
    if (target.lse != nullptr) *target.lse = lse_ln;
    if (target.partial) {
      std::memcpy(target.o, m.b.row_out, m.head_dim * sizeof(float));
    } else {
      store_bf16(m.b.row_out, m.head_dim, reinterpret_cast<uint16_t*>(target.o));
    }
  }
}

template <class Products>
PANDO_AVX512 void attend_products(const Unit& u) {
  // Matrix products flush subnormals; with the vector code doing the same, an empty tile changes
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
    const int32_t end = tile_end(begin, Products::kTile, u.token_end);
    TokenTile t;
    t.seen = m.bounds.seen(begin, end);
    if (t.seen.any_begin < t.seen.any_end) {
      t.base = begin / Products::kTile * Products::kTile;
      t.first_block = (t.seen.any_begin - t.base) / 16;
      t.last_block = (t.seen.any_end - t.base + 15) / 16;
      u.fill_offsets(t.seen.any_begin, t.seen.any_end, m.b.offsets);
      open_keys(m, t);
      TilePrefetch coming = prefetch_after<Products>(m, t, end);
      Products::scores(m, t, coming);
      vector_phase(m, t, coming);
      Products::outputs(m, t, coming);
      for (int32_t row = 0; t.reads_stale && row < m.row_blocks; ++row) add_stale(m, t, row);
    }
    begin = end;
  }
  write_rows(m);
  _mm_setcsr(saved_mode);
}

}  // namespace

void attend_tiles(const Unit& unit) { attend_products<TileProducts>(unit); }
void attend_dots(const Unit& unit) { attend_products<DotProducts>(unit); }

}  // namespace pando

#else  // no matrix products on this architecture

namespace pando {

void attend_tiles(const Unit&) {
  fail(ErrorCode::kUnsupported, "attend_tiles: this processor has no matrix tiles");
}
void attend_dots(const Unit&) {
  fail(ErrorCode::kUnsupported, "attend_dots: this processor has no bf16 dot products");
}

}  // namespace pando
#endif
