// The narrow kernel: few query rows, so K and V are read once, straight from their pages, at memory
// speed. The head dimension lives in vector lanes, in the order in which its products yield it.
//
// Included once a target, for kernels with products `P`, which derive from the element type of K
// and V:
//   Out                                         the element type of queries and outputs
//   open_query, open_query_tail                 kChunk elements of a query, as a Chunk
//   Query, store_query, load_query              packed q, in chunks of kChunk elements
//   Chunk, load_keys, load_keys_tail            the same of a row of K
//   dot(k, q, sum)                              adds the products of two chunks, over the lanes
//   kStep                                       tokens of V taken at once: 1, or 2 ...
//   kUnseen                                     ... with these zeros in place of one unseen
//   Values, load_values, load_values_tail       kChunk elements of the first and last token
//   Weights, store_weights, load_weights        of kStep tokens
//   add(w, v, a, b)                             adds weighted V to two vectors of O
//   store_chunk(a, b, to)                       two vectors of O in natural order
#if defined(PANDO_CPU_NARROW_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef PANDO_CPU_NARROW_INL_H_
#undef PANDO_CPU_NARROW_INL_H_
#else
#define PANDO_CPU_NARROW_INL_H_
#endif

#include "cpu/kernels.h"
#include "cpu/prefetch.h"
#include "cpu/simd-inl.h"
#include "plan/scratch.h"

// A file whose products need more than the target's instructions says so before including this one.
#ifndef PANDO_BEFORE_NARROW
#define PANDO_BEFORE_NARROW HWY_BEFORE_NAMESPACE
#endif

PANDO_BEFORE_NARROW();
namespace pando::HWY_NAMESPACE {

inline constexpr bool kManyRegisters = HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON;
inline constexpr int32_t kScoreTokens = 4;                     // dots that are reduced together
inline constexpr int32_t kScoreRows = kManyRegisters ? 4 : 2;  // rows that share a K load
inline constexpr int32_t kOutputVectors = kManyRegisters ? 16 : 8;  // of O held in registers
inline constexpr int32_t kPrefetchTokens = 8;  // of V, between portions of prefetches

using D4 = hn::CappedTag<float, 4>;

HWY_INLINE hn::Vec<D4> fold_blocks(hn::Vec<D4> v) { return v; }
#if HWY_MAX_BYTES >= 32
template <class V>
HWY_INLINE hn::Vec<D4> fold_blocks(V v) {
  const hn::DFromV<V> d;
  const hn::Half<decltype(d)> half;
  return fold_blocks(hn::Add(hn::LowerHalf(half, v), hn::UpperHalf(half, v)));
}
#endif

/// Stores the four sums over lanes of a, b, c and d.
HWY_INLINE void store_four_sums(VF a, VF b, VF c, VF e, float* to) {
  const DF d;
  const hn::Repartition<double, DF> pairs;
  const VF ab = hn::Add(hn::InterleaveLower(d, a, b), hn::InterleaveUpper(d, a, b));
  const VF ce = hn::Add(hn::InterleaveLower(d, c, e), hn::InterleaveUpper(d, c, e));
  const auto ab2 = hn::BitCast(pairs, ab);
  const auto ce2 = hn::BitCast(pairs, ce);
  const VF sums = hn::Add(hn::BitCast(d, hn::InterleaveLower(pairs, ab2, ce2)),
                          hn::BitCast(d, hn::InterleaveUpper(pairs, ab2, ce2)));
  hn::Store(fold_blocks(sums), D4(), to);
}

/// Addresses and sizes that the stages share.
template <class P>
struct Narrow {
  const Unit& u;
  NarrowScratch b;
  int32_t whole_chunks;
  int32_t tail;          // elements after the whole chunks
  int32_t padded_dim;    // stride of q and o
  int32_t lines_a_step;  // prefetched for each token of each pass over V

  Narrow(const Unit& unit, ScratchCursor& cursor)
      : u(unit), b(cursor, unit.rows, unit.call->head_dim) {
    whole_chunks = u.call->head_dim / kChunk;
    tail = u.call->head_dim % kChunk;
    const int32_t passes = std::max(1, u.rows * whole_chunks * 2 / kOutputVectors);
    const int64_t row_bytes = u.call->head_dim * u.kv_element_bytes();
    lines_a_step = static_cast<int32_t>((row_bytes / 64 + passes - 1) / passes);
    padded_dim = (whole_chunks + (tail > 0 ? 1 : 0)) * kChunk;
  }

  typename P::Query* query(int32_t r) const {
    return reinterpret_cast<typename P::Query*>(b.q) + int64_t{r} * padded_dim;
  }
  /// In a call with trees: row r does not see all of the tokens between the first and the last that
  /// its range has in the tile.
  bool has_holes(int32_t r) const {
    return std::popcount(b.seen[r]) != b.seen_end[r] - b.seen_begin[r];
  }
};

/// acc[i][r] += products of a chunk of the tokens' keys and of the rows' queries.
template <class P, int kR>
HWY_INLINE void score_chunk(const Narrow<P>& n, const typename P::Chunk (&keys)[kScoreTokens],
                            const typename P::Query* q, VF (&acc)[kScoreTokens][kR]) {
  HWY_UNROLL(4)
  for (int r = 0; r < kR; ++r) {
    const typename P::Chunk query = P::load_query(q + r * n.padded_dim);
    HWY_UNROLL(4)
    for (int i = 0; i < kScoreTokens; ++i) acc[i][r] = P::dot(keys[i], query, acc[i][r]);
  }
}

/// s[r][i] = sum_d q[r][d] * k[i][d] for kR rows and the four tokens k[0..3].
template <class P, int kR>
HWY_INLINE void score_tokens(const Narrow<P>& n, const typename P::T* const* k,
                             const typename P::Query* q, float* s) {
  VF acc[kScoreTokens][kR];
  HWY_UNROLL(4)
  for (int i = 0; i < kScoreTokens; ++i) {
    HWY_UNROLL(4)
    for (int r = 0; r < kR; ++r) acc[i][r] = hn::Zero(DF());
  }
  typename P::Chunk keys[kScoreTokens];
  for (int32_t c = 0; c < n.whole_chunks; ++c) {
    HWY_UNROLL(4)
    for (int i = 0; i < kScoreTokens; ++i) keys[i] = P::load_keys(k[i] + c * kChunk);
    score_chunk<P, kR>(n, keys, q + c * kChunk, acc);
  }
  if (n.tail > 0) {
    const int32_t at = n.whole_chunks * kChunk;
    HWY_UNROLL(4)
    for (int i = 0; i < kScoreTokens; ++i) keys[i] = P::load_keys_tail(k[i] + at, n.tail);
    score_chunk<P, kR>(n, keys, q + at, acc);
  }
  HWY_UNROLL(4)
  for (int r = 0; r < kR; ++r) {
    store_four_sums(acc[0][r], acc[1][r], acc[2][r], acc[3][r], s + r * kTileTokens);
  }
}

/// Unscaled scores of every row against the tokens of the tile.
template <class P>
HWY_INLINE void score_tile(const Narrow<P>& n, int32_t tokens, TokenPrefetch& coming) {
  using T = typename P::T;
  const T* const base = reinterpret_cast<const T*>(n.u.call->k);
  for (int32_t t = 0; t < tokens; t += kScoreTokens) {
    // The last four are filled up with a token that is there; its scores are not used.
    const T* k[kScoreTokens];
    for (int i = 0; i < kScoreTokens; ++i) k[i] = base + n.b.offsets[std::min(t + i, tokens - 1)];
    coming.lines(kScoreTokens * coming.token_lines() * 3 / 4);
    int32_t r = 0;
    const auto q = [&](int32_t row) { return n.query(row); };
    const auto s = [&](int32_t row) { return n.b.s + row * kTileTokens + t; };
    for (; r + kScoreRows <= n.u.rows; r += kScoreRows) {
      score_tokens<P, kScoreRows>(n, k, q(r), s(r));
    }
    if constexpr (kScoreRows == 4) {
      for (; r + 2 <= n.u.rows; r += 2) score_tokens<P, 2>(n, k, q(r), s(r));
    }
    for (; r < n.u.rows; ++r) score_tokens<P, 1>(n, k, q(r), s(r));
  }
}

/// Caps row r's scores over the tile, and hides those of tokens in a hole of what it sees.
template <class P>
HWY_NOINLINE void change_scores(const Narrow<P>& n, int32_t r, int32_t tokens) {
  float* const s = n.b.s + r * kTileTokens;
  if (n.u.scale.capped()) cap_scores(n.u.scale, round_up(tokens, kLanes), s);
  if (!n.u.call->trees) return;
  for (int32_t t = n.b.seen_begin[r]; t < n.b.seen_end[r]; ++t) {
    if ((n.b.seen[r] >> t & 1) == 0) s[t] = kMinusInf;
  }
}

/// Turns row r's scores into P in place over the tokens [b.seen_begin[r], b.seen_end[r]).
template <class P>
HWY_INLINE void softmax_row(const Narrow<P>& n, int32_t r, int32_t tokens) {
  const DF d;
  const DI di;
  const NarrowScratch& b = n.b;
  float* const s = b.s + r * kTileTokens;
  const VF minus_inf = hn::Set(d, kMinusInf);
  const VF scale_log2 = hn::Set(d, n.u.scale.scale_log2);
  const auto lane = hn::Iota(di, 0);
  const float old_max = b.row_max[r];
  VF top = hn::Set(d, old_max);
  for (int32_t t = 0; t < tokens; t += kLanes) {
    const auto early = hn::Lt(lane, hn::Set(di, b.seen_begin[r] - t));
    const auto seen = hn::AndNot(early, hn::Lt(lane, hn::Set(di, b.seen_end[r] - t)));
    const VF score = hn::IfThenElse(hn::RebindMask(d, seen), hn::Load(d, s + t), minus_inf);
    hn::Store(score, d, s + t);
    top = hn::Max(top, score);
  }
  top = hn::MaxOfLanes(d, top);
  // A row that has seen nothing yet subtracts 0 instead of -inf, so that 2^(-inf) = 0 follows.
  const VF finite_top = hn::IfThenElse(hn::Eq(top, minus_inf), hn::Zero(d), top);
  const VF rescale = weight(hn::Set(d, old_max), finite_top, scale_log2);
  VF sum = hn::Mul(hn::Load(d, b.row_sum + r * kLanes), rescale);
  for (int32_t t = 0; t < tokens; t += kLanes) {
    const VF p = weight(hn::Load(d, s + t), finite_top, scale_log2);
    P::store_weights(p, s, t);
    sum = hn::Add(sum, p);
  }
  hn::Store(sum, d, b.row_sum + r * kLanes);
  b.row_max[r] = hn::GetLane(top);
  b.alpha[r] = hn::GetLane(rescale);
}

/// acc += p[t] v over the tokens of one step, which begins at t: V of its first and last token, the
/// same one when it is a single one. A function, for a lambda would lack the target's attributes.
template <class P, int kR, int kC, bool kTail>
HWY_INLINE void output_step(const Narrow<P>& n, const float* p, int32_t t,
                            const typename P::T* first, const typename P::T* last,
                            VF (&acc)[kR][2 * kC]) {
  typename P::Weights weights[kR];
  HWY_UNROLL(4)
  for (int i = 0; i < kR; ++i) weights[i] = P::load_weights(p + i * kTileTokens, t);
  HWY_UNROLL(4)
  for (int c = 0; c < kC; ++c) {
    typename P::Values values;
    if constexpr (kTail) {
      values = P::load_values_tail(first, last, n.tail);
    } else {
      values = P::load_values(first + c * kChunk, last + c * kChunk);
    }
    HWY_UNROLL(4)
    for (int i = 0; i < kR; ++i) P::add(weights[i], values, acc[i][2 * c], acc[i][2 * c + 1]);
  }
}

/// o[r] = alpha * o[r] + sum_t p[r][t] v[t] for kR rows, kC chunks from `at` on, and the tokens
/// [begin, end) that all of these rows see.
template <class P, int kR, int kC, bool kTail>
HWY_INLINE void output_chunks(const Narrow<P>& n, int32_t r, int32_t at, int32_t begin, int32_t end,
                              TokenPrefetch& coming) {
  using T = typename P::T;
  const DF d;
  const T* const base = reinterpret_cast<const T*>(n.u.call->v) + at;
  float* const o = n.b.o + int64_t{r} * n.padded_dim + at;
  const float* const p = n.b.s + r * kTileTokens;
  const int64_t* const offsets = n.b.offsets;
  VF acc[kR][2 * kC];
  HWY_UNROLL(4)
  for (int i = 0; i < kR; ++i) {
    const VF alpha = hn::Set(d, n.b.alpha[r + i]);
    HWY_UNROLL(8)
    for (int j = 0; j < 2 * kC; ++j) {
      acc[i][j] = hn::Mul(hn::Load(d, o + i * n.padded_dim + j * kLanes), alpha);
    }
  }
  int32_t t = begin;
  if constexpr (P::kStep == 2) {
    if (t % 2 != 0) {
      output_step<P, kR, kC, kTail>(n, p, t - 1, P::kUnseen + at, base + offsets[t], acc);
      ++t;
    }
  }
  while (t + P::kStep <= end) {
    const int32_t block_end = std::min(end, t + kPrefetchTokens);
    coming.lines((block_end - t) * n.lines_a_step);
    for (; t + P::kStep <= block_end; t += P::kStep) {
      output_step<P, kR, kC, kTail>(n, p, t, base + offsets[t], base + offsets[t + P::kStep - 1],
                                    acc);
    }
  }
  if constexpr (P::kStep == 2) {
    if (t < end) output_step<P, kR, kC, kTail>(n, p, t, base + offsets[t], P::kUnseen + at, acc);
  }
  HWY_UNROLL(4)
  for (int i = 0; i < kR; ++i) {
    HWY_UNROLL(8)
    for (int j = 0; j < 2 * kC; ++j) {
      hn::Store(acc[i][j], d, o + i * n.padded_dim + j * kLanes);
    }
  }
}

template <class P, int kR>
HWY_INLINE void output_rows(const Narrow<P>& n, int32_t r, int32_t begin, int32_t end,
                            TokenPrefetch& coming) {
  constexpr int32_t kMost = std::min(4, kOutputVectors / (2 * kR));
  int32_t c = 0;
  for (; c + kMost <= n.whole_chunks; c += kMost) {
    output_chunks<P, kR, kMost, false>(n, r, c * kChunk, begin, end, coming);
  }
  if constexpr (kMost == 4) {
    for (; c + 2 <= n.whole_chunks; c += 2) {
      output_chunks<P, kR, 2, false>(n, r, c * kChunk, begin, end, coming);
    }
  }
  for (; c < n.whole_chunks; ++c) {
    output_chunks<P, kR, 1, false>(n, r, c * kChunk, begin, end, coming);
  }
  if (n.tail > 0) output_chunks<P, kR, 1, true>(n, r, c * kChunk, begin, end, coming);
}

/// The same for one row that does not see all of [begin, end): run by run, since V of a token that
/// it does not see may be NaN.
template <class P>
HWY_NOINLINE void output_runs(const Narrow<P>& n, int32_t r, TokenPrefetch& coming) {
  for (uint64_t left = n.b.seen[r]; left != 0;) {
    const int32_t begin = std::countr_zero(left);
    const int32_t end = begin + std::countr_one(left >> begin);
    output_rows<P, 1>(n, r, begin, end, coming);
    n.b.alpha[r] = 1;
    left = end < 64 ? left >> end << end : 0;
  }
}

template <class P, bool kTrees>
HWY_INLINE void output_tile(const Narrow<P>& n, TokenPrefetch& coming) {
  const NarrowScratch& b = n.b;
  for (int32_t r = 0; r < n.u.rows;) {
    if (kTrees && n.has_holes(r)) {
      output_runs(n, r++, coming);
      continue;
    }
    // Rows taken together see the same tokens: V of a token never meets a row that does not see it.
    const int32_t begin = b.seen_begin[r];
    const int32_t end = b.seen_end[r];
    int32_t alike = 1;
    while (alike < 4 && r + alike < n.u.rows && b.seen_begin[r + alike] == begin &&
           b.seen_end[r + alike] == end && !(kTrees && n.has_holes(r + alike))) {
      ++alike;
    }
    if (begin < end) {
      if (alike == 4) {
        output_rows<P, 4>(n, r, begin, end, coming);
      } else if (alike >= 2) {
        output_rows<P, 2>(n, r, begin, end, coming);
      } else {
        output_rows<P, 1>(n, r, begin, end, coming);
      }
    }
    r += alike == 3 ? 2 : alike;
  }
}

/// A bit for each token that row r sees, of those from `begin` on in its range in the tile.
template <class P>
HWY_NOINLINE uint64_t seen_tokens(const Narrow<P>& n, int32_t r, int32_t begin) {
  static_assert(kTileTokens <= 64);
  const PlanRow& row = n.u.plan_row(r);
  uint64_t seen = 0;
  for (int32_t t = n.b.seen_begin[r]; t < n.b.seen_end[r]; ++t) {
    const bool sees = n.u.full || sees_position(row.visible_begin, row.visible_end, row.tree_begin,
                                                row.tree_mask, begin + t);
    seen |= uint64_t{sees} << t;
  }
  return seen;
}

/// Apart from the code of calls without trees, which is as short as it can be.
template <class P>
HWY_NOINLINE void output_tile_of_trees(const Narrow<P>& n, TokenPrefetch& coming) {
  output_tile<P, true>(n, coming);
}

/// What row r sees of the tile [begin, end), relative to `begin`; empty is [0, 0).
template <class P>
HWY_INLINE void clip_rows(const Narrow<P>& n, int32_t begin, int32_t end) {
  for (int32_t r = 0; r < n.u.rows; ++r) {
    int32_t first = begin;
    int32_t last = end;
    if (!n.u.full) {
      const PlanRow& row = n.u.plan_row(r);
      first = std::max(first, row.visible_begin);
      last = std::min(last, row.visible_end);
    }
    n.b.seen_begin[r] = first < last ? first - begin : 0;
    n.b.seen_end[r] = first < last ? last - begin : 0;
    if (n.u.call->trees) n.b.seen[r] = seen_tokens(n, r, begin);
  }
}

template <class P>
void attend_narrow(const Unit& u) {
  using Q = typename P::Out::T;
  const DF d;
  ScratchCursor cursor(u.scratch);
  const Narrow<P> n(u, cursor);
  const NarrowScratch& b = n.b;
  const int32_t head_dim = u.call->head_dim;

  std::fill_n(b.o, int64_t{u.rows} * n.padded_dim, 0.0f);
  std::fill_n(b.row_max, u.rows, kMinusInf);
  std::fill_n(b.row_sum, int64_t{u.rows} * kLanes, 0.0f);
  for (int32_t r = 0; r < u.rows; ++r) {
    const Q* const q = reinterpret_cast<const Q*>(u.q_row(r));
    for (int32_t at = 0; at < n.padded_dim; at += kChunk) {
      const bool whole = at + kChunk <= head_dim;
      const auto chunk = whole ? P::open_query(q + at) : P::open_query_tail(q + at, n.tail);
      P::store_query(chunk, u.scale.q_factor, n.query(r) + at);
    }
  }

  const bool changes = u.scale.capped() || u.call->trees;
  const auto prefetch = [&](const std::byte* base, const int64_t* offsets, int32_t tokens) {
    return TokenPrefetch(base, offsets, tokens, u.kv_element_bytes(), head_dim);
  };
  for (int32_t begin = u.token_begin; begin < u.token_end;) {
    const int32_t end = tile_end(begin, kTileTokens, u.token_end);
    const int32_t tokens = end - begin;
    u.fill_offsets(begin, end, b.offsets);
    const int32_t coming = fill_coming(u, end, kTileTokens, b.next_offsets);
    clip_rows(n, begin, end);
    TokenPrefetch values = prefetch(u.call->v, b.offsets, tokens);
    score_tile(n, tokens, values);
    for (int32_t r = 0; r < u.rows; ++r) {
      // The last quarter of V, so that memory does not idle here.
      values.lines(tokens * values.token_lines() / 4 / u.rows + 1);
      if (changes) change_scores(n, r, tokens);
      softmax_row(n, r, tokens);
    }
    TokenPrefetch keys = prefetch(u.call->k, b.next_offsets, coming);
    if (u.call->trees) {
      output_tile_of_trees(n, keys);
    } else {
      output_tile<P, false>(n, keys);
    }
    begin = end;
  }

  for (int32_t r = 0; r < u.rows; ++r) {
    const float sum = hn::GetLane(hn::SumOfLanes(d, hn::Load(d, b.row_sum + r * kLanes)));
    const float lse_ln = lse_from(u.scale, b.row_max[r], sum);
    const VF inverse = hn::Set(d, lse_ln == kMinusInf ? 0.0f : u.value_scale / sum);
    for (int32_t at = 0; at < n.padded_dim; at += kChunk) {
      const float* const o = b.o + int64_t{r} * n.padded_dim + at;
      P::store_chunk(hn::Mul(hn::Load(d, o), inverse), hn::Mul(hn::Load(d, o + kLanes), inverse),
                     b.row_out + at);
    }
    write_row<typename P::Out>(u.target(r), b.row_out, head_dim, lse_ln);
  }
}

}  // namespace pando::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#endif  // PANDO_CPU_NARROW_INL_H_
