// A batch out of fuzzer bytes: well formed and richly shared most of the time, wrong now and then.
#pragma once

#include <cstdint>
#include <vector>

#include "byte_reader.h"
#include "pando/attention.h"
#include "pando/batch.h"
#include "pando/plan.h"

namespace pando::fuzz {

/// Storage behind a BatchView.
struct FuzzedBatch {
  std::vector<int32_t> q_indptr{0};
  std::vector<int32_t> kv_len;
  std::vector<int32_t> page_indptr{0};
  std::vector<int32_t> page_ids;
  int32_t page_tokens = 16;

  BatchView view() const { return {q_indptr, kv_len, page_indptr, page_ids, page_tokens}; }
  int32_t sequences() const { return static_cast<int32_t>(kv_len.size()); }

  /// Adds a sequence that starts with pages of an earlier one and goes on with pages of its own.
  void add_sequence(ByteReader& in);
  /// Puts an arbitrary number somewhere.
  void corrupt(ByteReader& in);
};

FuzzedBatch take_batch(ByteReader& in);
/// A batch that may follow `before` in a serving loop: sequences go on, come and go. Those that
/// hold something else than before, and some that do not, are in `changed`.
FuzzedBatch take_next_batch(ByteReader& in, const FuzzedBatch& before,
                            std::vector<int32_t>& changed);
/// Any spec. `visible` holds its explicit ranges and must outlive it.
AttentionSpec take_spec(ByteReader& in, int32_t q_rows, std::vector<VisibleRange>& visible);
PlanOptions take_options(ByteReader& in);
/// Of K and V, right or wrong; none when the bytes are at their end.
void take_kv_dtype(ByteReader& in, AttentionSpec& spec);
/// Adds a soft cap and trees, right or wrong; none when the bytes are at their end.
void take_variants(ByteReader& in, int32_t q_rows, AttentionSpec& spec,
                   std::vector<uint64_t>& tree_mask);

}  // namespace pando::fuzz
