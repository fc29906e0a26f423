// A batch as serving engines already hold it: query row offsets, KV lengths and page tables.
#pragma once

#include <cstdint>
#include <span>

namespace pando {

/// Non-owning view of a batch of `B` sequences in paged KV memory (host memory).
///
/// Sequence `b` owns query rows `[q_indptr[b], q_indptr[b+1])` and the first `kv_len[b]` tokens of
/// the pages `page_ids[page_indptr[b] .. page_indptr[b+1])`, `page_tokens` tokens a page. Entries
/// of a page table past `ceil(kv_len / page_tokens)` are never read, so a padded two-dimensional
/// block table of width `W` is described by `page_indptr[b] = b * W`.
struct BatchView {
  std::span<const int32_t> q_indptr;     ///< [B+1], starts at 0, never decreases
  std::span<const int32_t> kv_len;       ///< [B], tokens; 0 is allowed
  std::span<const int32_t> page_indptr;  ///< [B+1], starts at 0 or later, never decreases
  std::span<const int32_t> page_ids;     ///< at least page_indptr[B] ids, each in [0, 2^31-1]
  int32_t page_tokens = 0;               ///< a power of two in [1, 256]

  int32_t sequences() const { return static_cast<int32_t>(kv_len.size()); }
};

}  // namespace pando
