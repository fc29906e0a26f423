// One unit of work: a plan item at one kv head, with every address that a kernel needs.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "core/grouping.h"
#include "core/mask.h"
#include "core/soft_cap.h"
#include "pando/attention.h"
#include "pando/merge.h"
#include "pando/plan.h"
#include "plan/scratch.h"

namespace pando {

inline constexpr float kLog2E = 1.44269504088896341f;

/// What scores are scaled by. They are kept unscaled and their differences are scaled, which keeps
/// large scores exact. The sign of the scale goes into q, so that the largest score has the largest
/// weight.
struct ScoreScale {
  float q_factor;    // 1, -1, or 0 for a scale of 0
  float scale_ln;    // |scale|, or 1
  float scale_log2;  // the same times log2(e)
  // With a soft cap c, scores become tanh(|scale| / c * q.k), and what they are scaled by is c.
  float into_cap;  // |scale| / c; 0: no cap

  static ScoreScale of(float scale, float soft_cap) {
    ScoreScale s;
    s.q_factor = scale > 0 ? 1.0f : scale < 0 ? -1.0f : 0.0f;
    s.scale_ln = scale == 0 ? 1.0f : scale * s.q_factor;
    s.into_cap = soft_cap > 0 ? s.scale_ln / soft_cap : 0.0f;
    // A cap so far away that the quotient is no normal number is none.
    if (s.into_cap < std::numeric_limits<float>::min()) s.into_cap = 0;
    if (s.capped()) s.scale_ln = soft_cap;
    s.scale_log2 = s.scale_ln * kLog2E;
    return s;
  }
  bool capped() const { return into_cap > 0; }
};

/// What is the same for every unit of one attend call.
struct CallView {
  DType dtype;     // of q and out
  DType kv_dtype;  // of k and v
  int32_t head_dim;
  int32_t q_heads;
  int32_t group;
  float scale;                              // of the spec, without those of fp8 K
  float soft_cap;                           // 0: none
  std::span<const float> k_scale, v_scale;  // of fp8 KV, as in AttendArgs; else empty
  bool trees;                               // some row does not see all of its visible range
  const float* sinks;                       // [q_heads], or null
  const PlanRow* rows;
  const std::byte* q;
  int64_t q_row_stride, q_head_stride;  // elements, as all strides here
  const std::byte* k;
  const std::byte* v;
  int64_t page_stride, head_stride, token_stride;
  int32_t page_shift;  // log2 of page_tokens
  std::byte* out;
  int64_t out_row_stride, out_head_stride;
  float* lse;          // may be null
  float* partial_o;    // [kv_heads][partial_slots][head_dim]
  float* partial_lse;  // [kv_heads][partial_slots]
  int32_t partial_slots;

  ScoreScale score_scale(int32_t kv_head) const {
    return ScoreScale::of(scale * head_scale(k_scale, kv_head), soft_cap);
  }
  /// What sums of V are multiplied by.
  float value_scale(int32_t kv_head) const { return head_scale(v_scale, kv_head); }

 private:
  static float head_scale(std::span<const float> scales, int32_t kv_head) {
    return scales.empty() ? 1.0f : scales[scales.size() == 1 ? 0 : kv_head];
  }
};

/// Where the result of one packed row goes: `o` is fp32 for a partial, else of the call's dtype.
struct RowTarget {
  static constexpr float kNoSink = -std::numeric_limits<float>::infinity();

  std::byte* o;
  float* lse;
  bool partial;
  float sink = kNoSink;  // of a row's last result, so that it counts once

  /// Merges the sink, which has no value, into the result that is written. Products too small for
  /// a normal number become 0 with or without the mode in which the processor does that itself.
  void add_sink(float* o_row, int32_t head_dim, float& lse_ln) const {
    if (sink == kNoSink) return;
    const MergeWeights w = merge_weights(lse_ln, sink);
    for (int32_t d = 0; d < head_dim; ++d) {
      const float value = w.a < kLeast ? 0.0f : o_row[d] * w.a;
      o_row[d] = std::abs(value) < kLeast ? 0.0f : value;
    }
    lse_ln = w.lse;
  }

 private:
  static constexpr float kLeast = std::numeric_limits<float>::min();
};

/// A tile of packed rows over a run of kv tokens at one kv head.
struct Unit {
  const CallView* call;
  const int32_t* page_ids;  // of the page that holds position 0
  int32_t kv_head;
  ScoreScale scale;   // at the kv head
  float value_scale;  // the same, of V
  int32_t token_begin, token_end;
  int64_t packed_begin;
  int32_t rows;
  int32_t partial;
  bool full;  // every row sees every token
  std::byte* scratch;
  const Unit* next;  // the unit that this thread runs after this one, for prefetching, or null

  int64_t element_bytes() const { return dtype_bytes(call->dtype); }
  int64_t kv_element_bytes() const { return dtype_bytes(call->kv_dtype); }
  const PlanRow& plan_row(int32_t r) const {
    return call->rows[row_of_packed(packed_begin + r, call->group)];
  }
  /// head_dim elements of the query of row `r` of the tile.
  const std::byte* q_row(int32_t r) const {
    const int32_t head = q_head_of_packed(packed_begin + r, kv_head, call->group);
    const int64_t at = plan_row(r).q_row * call->q_row_stride + head * call->q_head_stride;
    return call->q + at * element_bytes();
  }
  RowTarget target(int32_t r) const {
    if (partial >= 0) {
      const int64_t slot = int64_t{kv_head} * call->partial_slots + partial + r;
      auto* o = reinterpret_cast<std::byte*>(call->partial_o + slot * call->head_dim);
      return {.o = o, .lse = call->partial_lse + slot, .partial = true};
    }
    const int32_t head = q_head_of_packed(packed_begin + r, kv_head, call->group);
    const int64_t q_row = plan_row(r).q_row;
    const int64_t at = q_row * call->out_row_stride + head * call->out_head_stride;
    float* lse = call->lse == nullptr ? nullptr : call->lse + q_row * call->q_heads + head;
    RowTarget target{.o = call->out + at * element_bytes(), .lse = lse, .partial = false};
    if (call->sinks != nullptr) target.sink = call->sinks[head];
    return target;
  }
  /// Element offsets in K and in V of the tokens [begin, end), which must lie inside the item.
  void fill_offsets(int32_t begin, int32_t end, int64_t* offsets) const {
    const int32_t page_tokens = int32_t{1} << call->page_shift;
    while (begin < end) {
      const int32_t slot = begin & (page_tokens - 1);
      const int32_t run = end - begin < page_tokens - slot ? end - begin : page_tokens - slot;
      int64_t at = page_ids[begin >> call->page_shift] * call->page_stride +
                   kv_head * call->head_stride + slot * call->token_stride;
      for (int32_t i = 0; i < run; ++i, at += call->token_stride) *offsets++ = at;
      begin += run;
    }
  }
};

/// One past the last token of the tile that holds `token`, on the absolute grid of `tile` tokens,
/// so that how a row's tokens are grouped does not depend on where an item begins.
constexpr int32_t tile_end(int32_t token, int32_t tile, int32_t item_end) {
  const int64_t grid = (int64_t{token} / tile + 1) * tile;
  return grid < item_end ? static_cast<int32_t>(grid) : item_end;
}

/// Offsets of the tile of tokens that a thread reads after position `end` of `unit`: the next one
/// of the unit or the first one of the unit that follows. Returns how many tokens that are.
inline int32_t fill_coming(const Unit& unit, int32_t end, int32_t tile, int64_t* offsets) {
  const Unit* const from = end < unit.token_end ? &unit : unit.next;
  if (from == nullptr) return 0;
  const int32_t begin = from == &unit ? end : from->token_begin;
  const int32_t coming_end = tile_end(begin, tile, from->token_end);
  from->fill_offsets(begin, coming_end, offsets);
  return coming_end - begin;
}

/// The part of a token tile that matters to the rows of a unit.
struct SeenTokens {
  int32_t any_begin, any_end;    // at least one row sees these
  int32_t full_begin, full_end;  // every row sees these; inside [any_begin, any_end)
  bool mixed() const { return full_begin != any_begin || full_end != any_end; }
};

/// Extremes of the rows' visible ranges, clamped to the item. A range with holes ends at the first
/// of them as far as `first_end` is concerned.
struct VisibleBounds {
  int32_t first_begin, last_begin, first_end, last_end;

  SeenTokens seen(int32_t begin, int32_t end) const {
    SeenTokens s;
    s.any_begin = begin > first_begin ? begin : first_begin;
    s.any_end = end < last_end ? end : last_end;
    if (s.any_end < s.any_begin) s.any_end = s.any_begin;
    s.full_begin = s.any_begin > last_begin ? s.any_begin : last_begin;
    s.full_end = s.any_end < first_end ? s.any_end : first_end;
    if (s.full_begin >= s.full_end) s.full_begin = s.full_end = s.any_end;
    return s;
  }
};

/// Visible range of each row, clamped to the item and empty for the padding rows up to `lanes`, and
/// in a call with trees its holes.
inline VisibleBounds fill_visible(const Unit& unit, int32_t lanes, const LaneMasks& masks) {
  VisibleBounds bounds{unit.token_end, unit.token_begin, unit.token_end, unit.token_begin};
  for (int32_t r = 0; r < lanes; ++r) {
    int32_t begin = unit.token_begin;
    int32_t end = unit.token_begin;
    int32_t tree_begin = unit.token_end;
    uint64_t tree_mask = 0;
    if (r < unit.rows) {
      const PlanRow& row = unit.plan_row(r);
      end = unit.token_end;
      if (!unit.full) {
        begin = row.visible_begin > begin ? row.visible_begin : begin;
        end = row.visible_end < end ? row.visible_end : end;
        if (end <= begin) begin = end = unit.token_begin;
        tree_begin = row.tree_begin;
        tree_mask = row.tree_mask;
      }
      if (begin < bounds.first_begin && begin != end) bounds.first_begin = begin;
      if (begin > bounds.last_begin) bounds.last_begin = begin;
      const int32_t without_holes = tree_begin < end ? tree_begin : end;
      if (without_holes < bounds.first_end) bounds.first_end = without_holes;
      if (end > bounds.last_end) bounds.last_end = end;
    }
    masks.begins[r] = begin;
    masks.ends[r] = end;
    if (!unit.call->trees) continue;
    masks.tree_begins[r] = tree_begin;
    masks.tree_low[r] = static_cast<int32_t>(tree_mask);
    masks.tree_high[r] = static_cast<int32_t>(tree_mask >> 32);
  }
  return bounds;
}

/// Merge of one group's rows at one kv head.
struct MergeUnit {
  const CallView* call;
  const int32_t* sources;  // partial slots of packed_begin
  int32_t source_count;
  int32_t kv_head;
  int64_t packed_begin;
  int64_t packed_end;
  float* accumulator;  // [head_dim]
};

}  // namespace pando
