// Matrix products by AVX-512 dot products of bf16 pairs (VDPBF16PS), fp32 sums.
//
//   scores:   a pair of dims of one token, broadcast, times that pair of 16 query rows
//   outputs:  a pair of tokens of one row of P, broadcast, times that pair of 16 dims of V
// Operands lie in memory as AMX wants them. A block of sums stays in registers over the whole of
// the summed dimension: eight or more of them hide the latency of an instruction.
#pragma once

#include "cpu/matrix_tokens.h"
#include "cpu/prefetch.h"

namespace pando {

/// sum + a * b, where every lane of `a` is the same pair.
PANDO_AVX512_INLINE __m512 add_dots(__m512 sum, uint32_t pair, __m512i b) {
  const __m512i a = _mm512_set1_epi32(static_cast<int32_t>(pair));
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}

/// Two bf16, which need not be aligned as a pair.
PANDO_AVX512_INLINE uint32_t load_pair(const std::byte* from) {
  uint32_t pair;
  std::memcpy(&pair, from, sizeof(pair));
  return pair;
}

/// s[j][i] = K_i Q_j for kTokens tokens i, stride_bytes apart, and kBlocks row blocks j.
template <int kTokens, int kBlocks>
PANDO_AVX512_INLINE void score_dots(const std::byte* keys, int64_t stride_bytes, const uint32_t* q,
                                    int32_t dim_steps, float* s) {
  const int32_t q_stride = dim_steps * 256;
  const std::byte* k[kTokens];
  __m512 sum[kTokens][kBlocks];
#pragma GCC unroll 8
  for (int i = 0; i < kTokens; ++i) {
    k[i] = keys + i * stride_bytes;
#pragma GCC unroll 3
    for (int j = 0; j < kBlocks; ++j) sum[i][j] = _mm512_setzero_ps();
  }
  for (int32_t pair = 0; pair < dim_steps * 16; ++pair) {
    __m512i rows[kBlocks];
#pragma GCC unroll 3
    for (int j = 0; j < kBlocks; ++j) rows[j] = _mm512_load_si512(q + j * q_stride + pair * 16);
#pragma GCC unroll 8
    for (int i = 0; i < kTokens; ++i) {
#pragma GCC unroll 3
      for (int j = 0; j < kBlocks; ++j) {
        sum[i][j] = add_dots(sum[i][j], load_pair(k[i] + pair * 4), rows[j]);
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kTokens; ++i) {
#pragma GCC unroll 3
    for (int j = 0; j < kBlocks; ++j) _mm512_store_ps(s + j * kScoreStride + i * 16, sum[i][j]);
  }
}

/// o[c][r] += P_r V_c for kRows rows r and kColumns blocks c of 16 dims.
template <int kRows, int kColumns>
PANDO_AVX512_INLINE void output_dots(const uint32_t* p, const uint32_t* v, int32_t v_stride,
                                     int32_t steps, float* o) {
  __m512 sum[kRows][kColumns];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) sum[r][c] = _mm512_load_ps(o + c * 256 + r * 16);
  }
  for (int32_t step = 0; step < steps; ++step) {
    for (int32_t pair = 0; pair < 16; ++pair, v += v_stride) {
      __m512i dims[kColumns];
#pragma GCC unroll 4
      for (int c = 0; c < kColumns; ++c) dims[c] = _mm512_load_si512(v + c * 16);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
        for (int c = 0; c < kColumns; ++c) {
          sum[r][c] = add_dots(sum[r][c], p[step * 256 + r * 16 + pair], dims[c]);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < kColumns; ++c) _mm512_store_ps(o + c * 256 + r * 16, sum[r][c]);
  }
}

/// The two matrix products of attention by dot products.
struct DotProducts {
  /// Tokens taken at once, on an absolute grid of kv positions.
  static constexpr int32_t kTile = 64;
  static constexpr int32_t kPanelBlocks = 3;  // blocks of rows that share a broadcast of K

  static int32_t panels(const Matrix& m) {
    return (m.row_blocks + kPanelBlocks - 1) / kPanelBlocks;
  }

  /// Steps of a TilePrefetch that `scores` and `outputs` take together.
  static int64_t prefetch_steps(const Matrix& m, const TokenTile& t) {
    const int64_t blocks = t.last_block - t.first_block;
    return panels(m) * blocks * 2 + int64_t{m.row_blocks} * m.dim_steps * 2;
  }

  /// S of all rows.
  PANDO_AVX512 static void scores(const Matrix& m, const TokenTile& t, TilePrefetch& coming) {
    const int32_t count = panels(m);
    for (int32_t panel = 0, row = 0; panel < count; ++panel) {
      const int32_t width = m.row_blocks / count + (panel < m.row_blocks % count ? 1 : 0);
      for (int32_t i = t.first_block * 16; i < t.last_block * 16; i += 8) {
        coming.step();
        const int64_t stride = t.k_stride_bytes[i / 16];
        const auto* const k = static_cast<const std::byte*>(t.k_tile[i / 16]) + i % 16 * stride;
        float* const s = m.s(row) + i * 16;
        if (width == 1) score_dots<8, 1>(k, stride, m.q_pairs(row), m.dim_steps, s);
        if (width == 2) score_dots<8, 2>(k, stride, m.q_pairs(row), m.dim_steps, s);
        if (width == 3) score_dots<8, 3>(k, stride, m.q_pairs(row), m.dim_steps, s);
      }
      row += width;
    }
  }

  /// O += P V of all rows; rows that only fill up a block are left out, four at a time.
  PANDO_AVX512 static void outputs(const Matrix& m, const TokenTile& t, TilePrefetch& coming) {
    const int32_t steps = t.last_step() - t.first_step();
    const uint32_t* const v = m.b.v_pairs + int64_t{t.first_step()} * 16 * m.padded_dim();
    for (int32_t block = 0; block < m.row_blocks; ++block) {
      const uint32_t* const p = m.p_pairs(block) + t.first_step() * 256;
      const int32_t rows = std::min(16, m.u.rows - block * 16);
      for (int32_t d = 0; d < m.dim_steps; ++d) {
        float* const o = m.o(block) + d * 512;
        for (int32_t r = 0; r < rows; r += 8) {
          coming.step();
          const auto* const some_p = p + r * 16;
          if (rows - r > 4) {
            output_dots<8, 2>(some_p, v + d * 32, m.padded_dim(), steps, o + r * 16);
          } else {
            output_dots<4, 2>(some_p, v + d * 32, m.padded_dim(), steps, o + r * 16);
          }
        }
      }
    }
  }
};

}  // namespace pando
