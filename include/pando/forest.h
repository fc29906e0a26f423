// Which runs of pages are shared, and by whom: found from page tables alone.
#pragma once

#include <cstdint>
#include <memory>
#include <span>

#include "pando/batch.h"

namespace pando {

/// A maximal run of pages that the same set of sequences holds at the same positions.
struct Segment {
  int32_t parent = -1;  ///< index of the segment that precedes it, -1 at the start of a sequence
  int32_t depth = 0;    ///< number of segments before it
  int32_t token_begin = 0;  ///< position of its first token, a multiple of page_tokens
  int32_t token_end = 0;    ///< one past its last token: of the longest sequence that reaches it
  int32_t seq_begin = 0;    ///< its sequences are order()[seq_begin .. seq_end)
  int32_t seq_own_end = 0;  ///< of these, [seq_begin, seq_own_end) end in this segment
  int32_t seq_end = 0;
  int32_t sequence = 0;  ///< one of its sequences: the one whose page table names its pages

  int32_t tokens() const { return token_end - token_begin; }
  int32_t sequences() const { return seq_end - seq_begin; }
};

/// The shared structure of a batch: a forest of segments, parents before children (preorder).
///
/// Two sequences share a page when their page tables hold the same id at the same position and
/// agree on every position before it. Cost of discover: one pass over the page ids at memory
/// speed. Memory is kept between calls, so a forest that is reused stops allocating.
class Forest {
 public:
  Forest();
  ~Forest();
  Forest(Forest&&) noexcept;
  Forest& operator=(Forest&&) noexcept;

  /// Rebuilds the forest from `batch`. Throws kInvalidArgument on bad input and is then unchanged.
  void discover(const BatchView& batch);

  /// Brings the forest to `batch` after a step, at the cost of what changed.
  ///
  /// A sequence that is not listed in `changed` must hold the pages it held before, possibly
  /// followed by more, and a kv_len at least as long. The ids that it held are not looked at again,
  /// so one that changed is neither found nor in max_page_id. Listed sequences may hold anything.
  /// Sequences past the old batch size are new, those past the new one are gone; neither need be
  /// listed.
  /// Segments and order equal those of discover(batch). A listed index out of range, or an unlisted
  /// sequence that became shorter, throws kInvalidArgument; the forest is then unchanged.
  void update(const BatchView& batch, std::span<const int32_t> changed = {});

  std::span<const Segment> segments() const;
  /// Sequence indices such that the sequences under a segment are contiguous; those with no kv
  /// come last, under no segment.
  std::span<const int32_t> order() const;
  std::span<const int32_t> q_indptr() const;     ///< copy of the batch's
  std::span<const int32_t> kv_len() const;       ///< copy of the batch's
  std::span<const int32_t> page_indptr() const;  ///< copy of the batch's
  int32_t sequences() const;
  int32_t q_rows() const;
  int32_t page_tokens() const;
  int32_t max_page_id() const;  ///< the largest id in use, -1 when there are none

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// `Forest` of `batch`; for one-off use. Keep a Forest and call its members in a serving loop.
Forest discover(const BatchView& batch);

}  // namespace pando
