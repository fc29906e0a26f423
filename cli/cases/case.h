// Everything of one attention problem in host memory: page tables, spec, layout and data.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cases/buffer.h"
#include "pando/attention.h"
#include "pando/batch.h"
#include "pando/error.h"
#include "pando/forest.h"
#include "reference/oracle.h"

namespace pando::cases {

enum class KvOrder { kHnd, kNhd };

/// The page tables of a batch: storage behind a BatchView.
struct Tables {
  std::vector<int32_t> q_indptr{0};
  std::vector<int32_t> kv_len;
  std::vector<int32_t> page_indptr{0};
  std::vector<int32_t> page_ids;
  int32_t page_tokens = 16;
  int64_t num_pages = 0;  ///< pages of the KV tensors; ids are below it

  BatchView batch() const;
  int32_t sequences() const { return static_cast<int32_t>(kv_len.size()); }
  int32_t q_rows() const { return q_indptr.back(); }
  int64_t tokens() const;  ///< sum of kv_len: what is read without sharing
  /// Throws `code` naming `origin`, the argument, what it got and what was wanted.
  void check(const std::string& origin, ErrorCode code) const;
};

/// One attention problem.
struct Case {
  std::string name;
  Tables tables;
  AttentionSpec spec;  ///< without `visible` and `tree_mask`, which attention() adds
  std::vector<VisibleRange> visible;
  std::vector<uint64_t> tree_mask;
  std::vector<float> sinks;             ///< empty, or [q_heads]
  std::vector<float> k_scale, v_scale;  ///< of fp8 KV, as in AttendArgs; else empty
  KvOrder order = KvOrder::kHnd;
  int32_t kv_gap = 0;        ///< elements after each row, token or head, and page of k and v
  int64_t q_row_stride = 0;  ///< elements; 0: contiguous
  int64_t q_head_stride = 0;
  Buffer q;  ///< [q_rows, q_heads, head_dim]
  Buffer k;  ///< [num_pages, kv_heads, page_tokens, head_dim], or tokens before heads
  Buffer v;

  AttentionSpec attention() const;
  KvLayout kv() const;
  DType kv_dtype() const { return spec.kv_dtype_or_default(); }
  const float* sinks_or_null() const { return sinks.empty() ? nullptr : sinks.data(); }
  ConstRowsView q_view() const { return {q.data(), q_row_stride, q_head_stride}; }
  /// The problem that the oracle solves.
  Problem problem() const;
  int64_t kv_elements() const;                        ///< of k, and of v
  int64_t q_offset(int64_t row, int64_t head) const;  ///< in elements
};

/// The given sequences as a batch of their own, on the same pages of the same K and V.
Case subset(const Case& problem, const std::vector<int32_t>& sequences);

/// One segment that a batch is expected to have: its tokens and its sequences, ascending.
struct ExpectedSegment {
  int32_t token_begin;
  int32_t token_end;
  std::vector<int32_t> sequences;
  friend auto operator<=>(const ExpectedSegment&, const ExpectedSegment&) = default;
};

/// Segments of `tables` by definition: sequences are grouped page by page. Sorted.
std::vector<ExpectedSegment> expected_forest(const Tables& tables);
/// What `forest` says, in the same form, so that the two can be compared.
std::vector<ExpectedSegment> as_expected(const Forest& forest);

}  // namespace pando::cases
