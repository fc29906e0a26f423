// The wide kernel: many query rows on one run of kv tokens, as matrix products.
//
// Query rows live in vector lanes, in panels of a few vectors. With T tokens a tile, D = head_dim:
//   S[T][rows] = K[T][D] Q^T[D][rows],  softmax down the columns,  O[D][rows] += V^T[D][T]
//   P[T][rows]
// K and V are read as scalars that are broadcast, so neither is transposed; the sums of a row never
// leave its lane, so a row's bits do not depend on the other rows of the tile.
// clang-format off
#include "cpu/simd_config.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/wide.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
// clang-format on

#include "cpu/kernels.h"
#include "cpu/prefetch.h"
#include "cpu/simd-inl.h"
#include "plan/scratch.h"

HWY_BEFORE_NAMESPACE();
namespace pando::HWY_NAMESPACE {
namespace {

/// Register blocks: kBlock scalars times the vectors of a panel, sized to the register file.
inline constexpr int32_t kBlock = HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_NEON ? 8 : 4;
inline constexpr int32_t kPanelVectors = 3;

/// Rows [first, first + vectors * kLanes) of the tile.
struct Panel {
  int32_t first;
  int32_t vectors;
};

/// S[i] = sum_d rows[i][d] * q[d] for the kBlock tokens of `rows`. Dimensions are summed in runs of
/// kSumRun, whose sums are added up: a single running sum would lose bits with head_dim.
template <int kV>
HWY_INLINE void score_block(const float* const* rows, const float* q, int32_t head_dim, float* s) {
  constexpr int32_t kSumRun = 32;
  const DF d;
  const float* row[kBlock];
  HWY_UNROLL(8)
  for (int i = 0; i < kBlock; ++i) row[i] = rows[i];
  for (int32_t begin = 0; begin < head_dim; begin += kSumRun) {
    const int32_t end = std::min(begin + kSumRun, head_dim);
    VF acc[kBlock][kV];
    HWY_UNROLL(8)
    for (int i = 0; i < kBlock; ++i) {
      HWY_UNROLL(3)
      for (int j = 0; j < kV; ++j) acc[i][j] = hn::Zero(d);
    }
    for (int32_t k = begin; k < end; ++k) {
      VF column[kV];
      HWY_UNROLL(3)
      for (int j = 0; j < kV; ++j) column[j] = hn::Load(d, q + (k * kV + j) * kLanes);
      HWY_UNROLL(8)
      for (int i = 0; i < kBlock; ++i) {
        const VF a = hn::Set(d, row[i][k]);
        HWY_UNROLL(3)
        for (int j = 0; j < kV; ++j) acc[i][j] = hn::MulAdd(a, column[j], acc[i][j]);
      }
    }
    HWY_UNROLL(8)
    for (int i = 0; i < kBlock; ++i) {
      HWY_UNROLL(3)
      for (int j = 0; j < kV; ++j) {
        float* const at = s + (i * kV + j) * kLanes;
        hn::Store(begin == 0 ? acc[i][j] : hn::Add(hn::Load(d, at), acc[i][j]), d, at);
      }
    }
  }
}

/// Lanes that see `token`: begin <= token < end, and not in a hole.
template <bool kTrees>
HWY_INLINE MF sees(const LaneMasks& masks, int32_t token) {
  const DI di;
  const auto t = hn::Set(di, token);
  const auto late = hn::Lt(t, hn::Load(di, masks.begins));
  auto seen = hn::AndNot(late, hn::Gt(hn::Load(di, masks.ends), t));
  if constexpr (kTrees) {
    const DU du;
    const auto tree_begin = hn::Load(di, masks.tree_begins);
    const auto bit = hn::BitCast(du, hn::Sub(t, tree_begin));
    const auto high = hn::RebindMask(du, hn::Gt(hn::BitCast(di, bit), hn::Set(di, 31)));
    const auto half = hn::IfThenElse(high, hn::BitCast(du, hn::Load(di, masks.tree_high)),
                                     hn::BitCast(du, hn::Load(di, masks.tree_low)));
    const auto shifted = hn::Shr(half, hn::And(bit, hn::Set(du, 31u)));
    const auto one = hn::Set(du, 1u);
    const auto in_tree = hn::RebindMask(di, hn::Eq(hn::And(shifted, one), one));
    seen = hn::And(seen, hn::Or(hn::Gt(tree_begin, t), in_tree));
  }
  return hn::RebindMask(DF(), seen);
}

/// How the lanes of a panel see the tokens of a tile.
enum class Seen { kAll, kRanges, kTrees };

/// O[d0 .. d0 + kBlock) = O * alpha + V^T P over tokens [seen.any_begin, seen.any_end), of which
/// the first is row 0 of `v_rows` and of `p`. A lane's sum skips tokens that it does not see.
template <int kV, Seen kSeen>
HWY_INLINE void output_block(const float* const* v_rows, int32_t d0, const float* p,
                             const float* alpha, const SeenTokens& seen, const LaneMasks& masks,
                             float* o) {
  const DF d;
  VF acc[kBlock][kV];
  HWY_UNROLL(3)
  for (int j = 0; j < kV; ++j) {
    const VF rescale = hn::Load(d, alpha + j * kLanes);
    HWY_UNROLL(8)
    for (int i = 0; i < kBlock; ++i) {
      acc[i][j] = hn::Mul(hn::Load(d, o + (i * kV + j) * kLanes), rescale);
    }
  }
  for (int32_t token = seen.any_begin; token < seen.any_end; ++token) {
    const int32_t t = token - seen.any_begin;
    const float* const v = v_rows[t] + d0;
    VF column[kV];
    HWY_UNROLL(3)
    for (int j = 0; j < kV; ++j) column[j] = hn::Load(d, p + (t * kV + j) * kLanes);
    if constexpr (kSeen != Seen::kAll) {
      MF mask[kV];
      HWY_UNROLL(3)
      for (int j = 0; j < kV; ++j) {
        mask[j] = sees<kSeen == Seen::kTrees>(masks.from(j * kLanes), token);
      }
      HWY_UNROLL(8)
      for (int i = 0; i < kBlock; ++i) {
        const VF a = hn::Set(d, v[i]);
        HWY_UNROLL(3)
        for (int j = 0; j < kV; ++j) {
          acc[i][j] = hn::IfThenElse(mask[j], hn::MulAdd(a, column[j], acc[i][j]), acc[i][j]);
        }
      }
    } else {
      HWY_UNROLL(8)
      for (int i = 0; i < kBlock; ++i) {
        const VF a = hn::Set(d, v[i]);
        HWY_UNROLL(3)
        for (int j = 0; j < kV; ++j) acc[i][j] = hn::MulAdd(a, column[j], acc[i][j]);
      }
    }
  }
  HWY_UNROLL(8)
  for (int i = 0; i < kBlock; ++i) {
    HWY_UNROLL(3)
    for (int j = 0; j < kV; ++j) hn::Store(acc[i][j], d, o + (i * kV + j) * kLanes);
  }
}

/// Turns scores into P in place, updating the running maximum, sum and alpha.
/// Scores of tokens that a lane does not see become -inf by select, whatever they were.
template <int kV, bool kTrees>
HWY_INLINE void softmax(const SeenTokens& seen, const LaneMasks& masks, float* s, float* row_max,
                        float* row_sum, float* alpha, float scale) {
  const DF d;
  const int32_t tokens = seen.any_end - seen.any_begin;
  const VF minus_inf = hn::Set(d, kMinusInf);
  const VF scale_log2 = hn::Set(d, scale);
  VF top[kV], sum[kV];
  HWY_UNROLL(3)
  for (int j = 0; j < kV; ++j) top[j] = hn::Load(d, row_max + j * kLanes);
  for (int32_t t = 0; t < tokens; ++t) {
    float* const at = s + t * kV * kLanes;
    const int32_t token = seen.any_begin + t;
    if (token < seen.full_begin || token >= seen.full_end) {
      HWY_UNROLL(3)
      for (int j = 0; j < kV; ++j) {
        const MF visible = sees<kTrees>(masks.from(j * kLanes), token);
        const VF score = hn::Load(d, at + j * kLanes);
        hn::Store(hn::IfThenElse(visible, score, minus_inf), d, at + j * kLanes);
      }
    }
    HWY_UNROLL(3)
    for (int j = 0; j < kV; ++j) top[j] = hn::Max(top[j], hn::Load(d, at + j * kLanes));
  }
  HWY_UNROLL(3)
  for (int j = 0; j < kV; ++j) {
    const VF old_max = hn::Load(d, row_max + j * kLanes);
    hn::Store(top[j], d, row_max + j * kLanes);
    // A lane that has seen nothing yet subtracts 0 instead of -inf, so that 2^(-inf) = 0 follows.
    top[j] = hn::IfThenElse(hn::Eq(top[j], minus_inf), hn::Zero(d), top[j]);
    const VF rescale = weight(old_max, top[j], scale_log2);
    sum[j] = hn::Mul(hn::Load(d, row_sum + j * kLanes), rescale);
    hn::Store(rescale, d, alpha + j * kLanes);
  }
  for (int32_t t = 0; t < tokens; ++t) {
    float* const at = s + t * kV * kLanes;
    HWY_UNROLL(3)
    for (int j = 0; j < kV; ++j) {
      const VF p = weight(hn::Load(d, at + j * kLanes), top[j], scale_log2);
      hn::Store(p, d, at + j * kLanes);
      sum[j] = hn::Add(sum[j], p);
    }
  }
  HWY_UNROLL(3)
  for (int j = 0; j < kV; ++j) hn::Store(sum[j], d, row_sum + j * kLanes);
}

template <int kV>
HWY_NOINLINE void panel_tile(const WideScratch& b, int32_t first, const SeenTokens& seen,
                             const Unit& u, TilePrefetch& coming) {
  const CallView& call = *u.call;
  const int32_t head_dim = call.head_dim;
  const int32_t tokens = seen.any_end - seen.any_begin;
  const float* const q = b.q + int64_t{first} * head_dim;
  for (int32_t t = 0; t < tokens; t += kBlock) {
    coming.step();
    score_block<kV>(b.k_rows + t, q, head_dim, b.s + t * kV * kLanes);
  }
  const LaneMasks masks = b.masks.from(first);
  if (u.scale.capped()) cap_scores(u.scale, int64_t{tokens} * kV * kLanes, b.s);
  if (call.trees) {
    softmax<kV, true>(seen, masks, b.s, b.row_max + first, b.row_sum + first, b.alpha + first,
                      u.scale.scale_log2);
  } else {
    softmax<kV, false>(seen, masks, b.s, b.row_max + first, b.row_sum + first, b.alpha + first,
                       u.scale.scale_log2);
  }
  float* const o = b.o + int64_t{first} * head_dim;
  for (int32_t d0 = 0; d0 < head_dim; d0 += kBlock) {
    float* const block = o + d0 * kV * kLanes;
    coming.step();
    const float* const alpha = b.alpha + first;
    if (!seen.mixed()) {
      output_block<kV, Seen::kAll>(b.v_rows, d0, b.s, alpha, seen, masks, block);
    } else if (!call.trees) {
      output_block<kV, Seen::kRanges>(b.v_rows, d0, b.s, alpha, seen, masks, block);
    } else {
      output_block<kV, Seen::kTrees>(b.v_rows, d0, b.s, alpha, seen, masks, block);
    }
  }
}

template <class E>
HWY_INLINE void pack_queries(const Unit& u, const WideScratch& b, const Panel& panel) {
  const int32_t head_dim = u.call->head_dim;
  const int32_t width = panel.vectors * kLanes;
  float* const q = b.q + int64_t{panel.first} * head_dim;
  const float factor = u.scale.q_factor;
  for (int32_t lane = 0; lane < width; ++lane) {
    const int32_t r = panel.first + lane;
    if (r >= u.rows) {
      for (int32_t d = 0; d < head_dim; ++d) q[d * width + lane] = 0.0f;
      continue;
    }
    E::load_row(reinterpret_cast<const typename E::T*>(u.q_row(r)), head_dim, b.row_out);
    for (int32_t d = 0; d < head_dim; ++d) q[d * width + lane] = b.row_out[d] * factor;
  }
}

template <class E>
HWY_INLINE void write_panel(const Unit& u, const WideScratch& b, const Panel& panel) {
  const int32_t head_dim = u.call->head_dim;
  const int32_t width = panel.vectors * kLanes;
  const float* const o = b.o + int64_t{panel.first} * head_dim;
  for (int32_t lane = 0; lane < width && panel.first + lane < u.rows; ++lane) {
    const int32_t r = panel.first + lane;
    const float lse_ln = lse_from(u.scale, b.row_max[r], b.row_sum[r]);
    const float inverse = lse_ln == kMinusInf ? 0.0f : u.value_scale / b.row_sum[r];
    for (int32_t d = 0; d < head_dim; ++d) b.row_out[d] = o[d * width + lane] * inverse;
    write_row<E>(u.target(r), b.row_out, head_dim, lse_ln);
  }
}

/// Points `rows` at fp32 rows of the tokens, converting them to `converted` unless they are fp32.
template <class E>
HWY_INLINE void open_rows(const std::byte* base, const int64_t* offsets, int32_t tokens,
                          int32_t head_dim, float* converted, const float** rows) {
  const auto* const elements = reinterpret_cast<const typename E::T*>(base);
  for (int32_t t = 0; t < tokens; ++t) {
    if constexpr (E::kDType == DType::kF32) {
      rows[t] = elements + offsets[t];
    } else {
      E::load_row(elements + offsets[t], head_dim, converted + int64_t{t} * head_dim);
      rows[t] = converted + int64_t{t} * head_dim;
    }
  }
}

template <class Kv>
HWY_INLINE void unit_tile(const Unit& u, const WideScratch& b, const SeenTokens& seen,
                          int32_t vectors, int32_t panels, TilePrefetch coming) {
  const int32_t head_dim = u.call->head_dim;
  const int32_t tokens = seen.any_end - seen.any_begin;
  u.fill_offsets(seen.any_begin, seen.any_end, b.offsets);
  open_rows<Kv>(u.call->k, b.offsets, tokens, head_dim, b.k, b.k_rows);
  open_rows<Kv>(u.call->v, b.offsets, tokens, head_dim, b.v, b.v_rows);
  // The last block of tokens is filled up with a token that is there; its scores are not used.
  for (int32_t t = tokens; t % kBlock != 0; ++t) b.k_rows[t] = b.k_rows[tokens - 1];
  int32_t first = 0;
  for (int32_t i = 0; i < panels; ++i) {
    const int32_t width = vectors / panels + (i < vectors % panels ? 1 : 0);
    if (width == 1) panel_tile<1>(b, first, seen, u, coming);
    if (width == 2) panel_tile<2>(b, first, seen, u, coming);
    if (width == 3) panel_tile<3>(b, first, seen, u, coming);
    first += width * kLanes;
  }
}

/// E: of queries and outputs; Kv: of K and V.
template <class E, class Kv = E>
void attend_wide(const Unit& u) {
  const int32_t head_dim = u.call->head_dim;
  const int32_t vectors = (u.rows + kLanes - 1) / kLanes;
  const int32_t panels = (vectors + kPanelVectors - 1) / kPanelVectors;
  const int32_t lanes = vectors * kLanes;
  ScratchCursor cursor(u.scratch);
  const WideScratch b(cursor, u.rows, head_dim);
  const VisibleBounds bounds = fill_visible(u, lanes, b.masks);

  const auto for_each_panel = [&](auto&& visit) {
    int32_t first = 0;
    for (int32_t i = 0; i < panels; ++i) {
      const Panel panel{first, vectors / panels + (i < vectors % panels ? 1 : 0)};
      visit(panel);
      first += panel.vectors * kLanes;
    }
  };
  for_each_panel([&](const Panel& panel) { pack_queries<E>(u, b, panel); });
  std::fill_n(b.row_max, lanes, kMinusInf);
  std::fill_n(b.row_sum, lanes, 0.0f);
  std::fill_n(b.o, int64_t{lanes} * head_dim, 0.0f);

  for (int32_t begin = u.token_begin; begin < u.token_end;) {
    const int32_t end = tile_end(begin, kTileTokens, u.token_end);
    const SeenTokens seen = bounds.seen(begin, end);
    if (seen.any_begin < seen.any_end) {
      const int32_t coming = fill_coming(u, end, kTileTokens, b.next_offsets);
      const auto tokens_of = [&](const std::byte* base) {
        return TokenPrefetch(base, b.next_offsets, coming, u.kv_element_bytes(), head_dim);
      };
      const int32_t steps = panels * ((seen.any_end - seen.any_begin + head_dim) / kBlock);
      unit_tile<Kv>(u, b, seen, vectors, panels,
                    TilePrefetch(tokens_of(u.call->k), tokens_of(u.call->v), std::max(1, steps)));
    }
    begin = end;
  }
  for_each_panel([&](const Panel& panel) { write_panel<E>(u, b, panel); });
}

template <class E>
UnitKernel wide_kernel_for(bool fp8) {
  return fp8 ? attend_wide<E, ElementE4M3> : attend_wide<E>;
}

UnitKernel wide_kernel_of(DType dtype, DType kv_dtype) {
  const bool fp8 = kv_dtype == DType::kE4M3;
  switch (dtype) {
    case DType::kF32: return wide_kernel_for<ElementF32>(fp8);
    case DType::kBF16: return wide_kernel_for<ElementBF16>(fp8);
    case DType::kF16: return wide_kernel_for<ElementF16>(fp8);
    case DType::kE4M3: break;  // not of queries
  }
  return nullptr;
}

}  // namespace
}  // namespace pando::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace pando {
HWY_EXPORT(wide_kernel_of);
UnitKernel wide_kernel(DType dtype, DType kv_dtype) {
  return HWY_DYNAMIC_DISPATCH(wide_kernel_of)(dtype, kv_dtype);
}
}  // namespace pando
#endif
