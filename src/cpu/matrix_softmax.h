// Softmax of the matrix kernels: 16 rows in the lanes of a vector.
#pragma once

#include "cpu/matrix_tokens.h"

namespace pando {

inline constexpr float kEmptyScore = -std::numeric_limits<float>::infinity();

/// The softmax of 16 rows over one tile of tokens.
class Softmax {
 public:
  PANDO_AVX512_INLINE Softmax(const Matrix& m, const TokenTile& t, int32_t row_block)
      : s_(m.s(row_block)),
        base_(t.base),
        begin_(t.seen.any_begin - t.base),
        end_(t.seen.any_end - t.base),
        full_begin_(t.seen.full_begin - t.base),
        full_end_(t.seen.full_end - t.base),
        trees_(m.u.call->trees),
        masks_(m.b.masks.from(row_block * 16)),
        begins_(_mm512_load_si512(masks_.begins)),
        ends_(_mm512_load_si512(masks_.ends)),
        scale_log2_(_mm512_set1_ps(m.u.scale.scale_log2)) {}

  /// Puts the tile's scores under a soft cap: tanh(into_cap * q.k).
  PANDO_AVX512_INLINE void cap(float* s, float into_cap) const {
    const __m512 factor = _mm512_set1_ps(into_cap);
    for (int32_t i = begin_; i < end_; ++i) {
      _mm512_store_ps(s + i * 16, tanh_16(_mm512_mul_ps(_mm512_load_ps(s + i * 16), factor)));
    }
  }

  /// The larger of `top` and the tile's unscaled scores.
  PANDO_AVX512_INLINE __m512 max(__m512 top) const {
    // Four running maxima, because one would wait for itself.
    __m512 tops[4] = {top, top, top, top};
    int32_t i = begin_;
    for (; i < end_ && (i < full_begin_ || i % 4 != 0); ++i)
      tops[0] = _mm512_max_ps(tops[0], score(i));
    for (; i + 4 <= full_end_; i += 4) {
      for (int32_t j = 0; j < 4; ++j) {
        tops[j] = _mm512_max_ps(tops[j], _mm512_load_ps(s_ + (i + j) * 16));
      }
    }
    for (; i < end_; ++i) tops[0] = _mm512_max_ps(tops[0], score(i));
    return _mm512_max_ps(_mm512_max_ps(tops[0], tops[1]), _mm512_max_ps(tops[2], tops[3]));
  }

  /// P of the 32 tokens from `first` on, in pairs of tokens; adds to `sum`.
  PANDO_AVX512_INLINE void exp(int32_t first, __m512 top, __m512& sum, __m512i (&pairs)[16],
                               TilePrefetch& coming) const {
    if (first >= full_begin_ && first + 32 <= full_end_) {
      for (int32_t j = 0; j < 16; ++j) {
        coming.step();
        const float* const at = s_ + (first + j * 2) * 16;
        const __m512 even = weight(_mm512_load_ps(at), top);
        const __m512 odd = weight(_mm512_load_ps(at + 16), top);
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
        p[k] = weight(score(i), top);
        sum = _mm512_add_ps(sum, p[k]);
      }
      pairs[j] = bf16_pairs(p[0], p[1]);
    }
  }

  /// Weight of a score relative to `top`.
  PANDO_AVX512_INLINE __m512 weight(__m512 score, __m512 top) const {
    return exp2_16(_mm512_mul_ps(_mm512_sub_ps(score, top), scale_log2_));
  }

 private:
  /// Lanes that have no hole at `token`. A shift by 32 or more gives 0.
  PANDO_AVX512_INLINE __mmask16 outside_holes(__m512i token) const {
    const __m512i tree_begin = _mm512_load_si512(masks_.tree_begins);
    const __m512i bit = _mm512_sub_epi32(token, tree_begin);
    const __m512i low = _mm512_srlv_epi32(_mm512_load_si512(masks_.tree_low), bit);
    const __m512i high = _mm512_srlv_epi32(_mm512_load_si512(masks_.tree_high),
                                           _mm512_sub_epi32(bit, _mm512_set1_epi32(32)));
    return _mm512_cmpgt_epi32_mask(tree_begin, token) |
           _mm512_test_epi32_mask(_mm512_or_si512(low, high), _mm512_set1_epi32(1));
  }
  /// Score of token i where the row sees it, else -inf, whatever the product was.
  PANDO_AVX512_INLINE __m512 score(int32_t i) const {
    const __m512 x = _mm512_load_ps(s_ + i * 16);
    if (i >= full_begin_ && i < full_end_) return x;
    const __m512i token = _mm512_set1_epi32(base_ + i);
    __mmask16 seen =
        _mm512_cmple_epi32_mask(begins_, token) & _mm512_cmpgt_epi32_mask(ends_, token);
    if (trees_) seen &= outside_holes(token);
    return _mm512_mask_mov_ps(_mm512_set1_ps(kEmptyScore), seen, x);
  }

  const float* s_;
  int32_t base_, begin_, end_, full_begin_, full_end_;
  bool trees_;
  LaneMasks masks_;
  __m512i begins_, ends_;
  __m512 scale_log2_;
};

/// Updates the running maximum, sum and alpha of 16 rows, and writes P in pairs of tokens.
PANDO_AVX512 inline void softmax(const Matrix& m, const TokenTile& t, int32_t row_block,
                                 TilePrefetch& coming) {
  const int32_t first = row_block * 16;
  const Softmax tile(m, t, row_block);
  if (m.u.scale.capped()) tile.cap(m.s(row_block), m.u.scale.into_cap);
  uint32_t* const p_pairs = m.p_pairs(row_block);
  const __m512 old_max = _mm512_load_ps(m.b.row_max + first);
  const __m512 top = tile.max(old_max);
  // A row that has seen nothing yet subtracts 0 instead of -inf, so that 2^(-inf) = 0 follows.
  const __mmask16 something = _mm512_cmp_ps_mask(top, _mm512_set1_ps(kEmptyScore), _CMP_NEQ_UQ);
  const __m512 finite_top = _mm512_maskz_mov_ps(something, top);
  const __m512 alpha = tile.weight(old_max, finite_top);
  __m512 sum = _mm512_mul_ps(_mm512_load_ps(m.b.row_sum + first), alpha);
  for (int32_t step = t.first_step(); step < t.last_step(); ++step) {
    __m512i pairs[16];
    tile.exp(step * 32, finite_top, sum, pairs, coming);
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
PANDO_AVX512 inline void rescale(const Matrix& m, int32_t row_block) {
  const __m512 alpha = _mm512_load_ps(m.b.alpha + row_block * 16);
  uint32_t moved = _mm512_cmp_ps_mask(alpha, _mm512_set1_ps(1.0f), _CMP_NEQ_UQ);
  float* const o = m.o(row_block);
  for (; moved != 0; moved &= moved - 1) {
    const int32_t r = __builtin_ctz(moved);
    const __m512 factor = _mm512_set1_ps(m.b.alpha[row_block * 16 + r]);
    for (int32_t tile = 0; tile < m.dim_steps * 2; ++tile) {
      float* const at = o + tile * 256 + r * 16;
      _mm512_store_ps(at, _mm512_mul_ps(_mm512_load_ps(at), factor));
    }
  }
}

}  // namespace pando
