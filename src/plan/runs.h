// From a forest to runs: which segments are read once for all their rows, and which by each child.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "pando/forest.h"
#include "pando/plan.h"
#include "plan/cost_model.h"

namespace pando {

/// Tokens that one set of rows reads together. Runs stand in preorder: the rows of a run contain
/// the rows of its children, and of its parent's tokens none is its own.
struct Run {
  int32_t row_begin;  ///< rows in plan order
  int32_t row_end;
  int32_t token_begin;
  int32_t token_end;
  int32_t sequence;  ///< whose page table names the pages
  int32_t parent;    ///< index of the run before it on the path, -1 for none
};

/// Rows of a batch in plan order, and what the rows under each segment see.
struct RowOrder {
  std::vector<PlanRow> rows;
  std::vector<int32_t> row_at;  ///< first row of forest.order()[i]; one more at the end
  /// Some row does not see the first tokens of its sequence, so that who holds a segment need not
  /// see it.
  bool drops_tokens = false;
  bool has_holes = false;  ///< some row does not see all of its visible range

  void build(const Forest& forest, const AttentionSpec& spec);
  /// Tokens [begin, end) that some row of [row_begin, row_end) sees.
  VisibleRange seen(int32_t row_begin, int32_t row_end) const;
};

/// Decides by the cost model which segments are shared.
class SharingDecider {
 public:
  /// Fills `decisions`: one for each segment with two or more sequences.
  void decide(const Forest& forest, const RowOrder& order, const CostModel& cost,
              const PlanOptions& options, std::vector<Decision>& decisions);

  /// By segment: nonzero when decided to be shared.
  std::span<const uint8_t> shared() const { return shared_; }
  /// Bytes that are read from memory when every visible token is read once.
  int64_t unique_bytes(const Forest& forest, const CostModel& cost) const;
  /// With the decided sharing or with none, bytes that come from memory, as repeated reads of what
  /// the cache holds do not, and the time in which all reads are delivered.
  int64_t memory_bytes(const Forest& forest, const CostModel& cost, bool sharing) const;
  double memory_us(const Forest& forest, const CostModel& cost, bool sharing) const;

 private:
  template <class Add>
  void each_read_again(const Forest& forest, const CostModel& cost, bool sharing,
                       const Add& add) const;

  struct Context {
    const Forest& forest;
    const RowOrder& order;
    const CostModel& cost;
    const PlanOptions& options;
  };
  /// Who reads a token of a segment that is not shared itself.
  struct Readers {
    int32_t count = 0;
    double compute_us = 0;  ///< worker time at one kv head
  };

  void survey(const Context& context);
  void find_seen(const RowOrder& order);
  /// Who sees some of a segment, of the sequences under one that follows it.
  struct Seeing {
    int32_t sequences = 0;
    Readers not_below;  ///< of these, those that see nothing of the segment below
  };
  Seeing find_seeing(const Context& context, const Segment& below, const Segment& segment) const;
  Decision weigh(const Context& context, int32_t segment, int32_t start, bool below_shared) const;

  std::vector<VisibleRange> seen_;         ///< by segment: what its rows see
  std::vector<VisibleRange> seen_of_seq_;  ///< by index in the forest's order, of drops_tokens
  std::vector<int32_t> seen_by_;           ///< by segment: sequences that see some of it
  std::vector<Readers> readers_;
  std::vector<uint8_t> shared_;
  std::vector<uint8_t> below_shared_;  ///< by segment: an ancestor is shared
  std::vector<int32_t> start_;         ///< by segment: first token that no ancestor shares
};

/// Lists the runs of a forest in which the segments marked in `shared` (empty: none) are shared.
void list_runs(const Forest& forest, const RowOrder& order, std::span<const uint8_t> shared,
               const PlanOptions& options, std::vector<int32_t>& scratch, std::vector<Run>& runs);

}  // namespace pando
