#include "cases/case.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <numeric>

#include "core/check.h"
#include "forest/scan.h"

namespace pando::cases {
namespace {

int32_t pages_of(const Tables& tables, int32_t sequence) {
  return pages_for(tables.kv_len[sequence], tables.page_tokens);
}

int32_t page_at(const Tables& tables, int32_t sequence, int32_t position) {
  return tables.page_ids[tables.page_indptr[sequence] + position];
}

void check_indptr(const std::vector<int32_t>& indptr, size_t sequences, const char* argument,
                  const std::string& origin, ErrorCode code) {
  if (indptr.size() != sequences + 1) {
    fail(code, "{}: {}: got {} entries, want {} (sequences + 1)", origin, argument, indptr.size(),
         sequences + 1);
  }
  if (indptr.front() != 0) {
    fail(code, "{}: {}[0]: got {}, want 0", origin, argument, indptr.front());
  }
  for (size_t i = 1; i < indptr.size(); ++i) {
    if (indptr[i] < indptr[i - 1]) {
      fail(code, "{}: {}[{}]: got {}, want at least {}[{}] = {}", origin, argument, i, indptr[i],
           argument, i - 1, indptr[i - 1]);
    }
  }
}

}  // namespace

BatchView Tables::batch() const { return {q_indptr, kv_len, page_indptr, page_ids, page_tokens}; }

int64_t Tables::tokens() const { return std::accumulate(kv_len.begin(), kv_len.end(), int64_t{0}); }

void Tables::check(const std::string& origin, ErrorCode code) const {
  if (page_tokens < 1 || page_tokens > 256 || (page_tokens & (page_tokens - 1)) != 0) {
    fail(code, "{}: page_tokens: got {}, want a power of two in [1, 256]", origin, page_tokens);
  }
  check_indptr(q_indptr, kv_len.size(), "q_indptr", origin, code);
  check_indptr(page_indptr, kv_len.size(), "page_indptr", origin, code);
  if (page_ids.size() < static_cast<size_t>(page_indptr.back())) {
    fail(code, "{}: page_ids: got {} ids, want at least page_indptr's last entry {}", origin,
         page_ids.size(), page_indptr.back());
  }
  for (int32_t s = 0; s < sequences(); ++s) {
    const int64_t held = int64_t{page_indptr[s + 1]} - page_indptr[s];
    if (kv_len[s] < 0 || kv_len[s] > held * page_tokens) {
      fail(code, "{}: kv_len[{}]: got {}, want a value in [0, {}] ({} pages of {} tokens)", origin,
           s, kv_len[s], held * page_tokens, held, page_tokens);
    }
    for (int32_t p = 0; p < pages_of(*this, s); ++p) {
      const int32_t id = page_at(*this, s, p);
      if (id < 0 || id >= num_pages) {
        fail(code, "{}: page_ids[{}]: got {}, want an id in [0, {})", origin, page_indptr[s] + p,
             id, num_pages);
      }
    }
  }
}

AttentionSpec Case::attention() const {
  AttentionSpec full = spec;
  full.visible = visible;
  full.tree_mask = tree_mask;
  return full;
}

KvLayout Case::kv() const {
  KvLayout kv{.num_pages = tables.num_pages,
              .page_tokens = tables.page_tokens,
              .kv_heads = spec.kv_heads,
              .head_dim = spec.head_dim};
  const bool by_head = order == KvOrder::kHnd;
  int64_t& inner = by_head ? kv.token_stride : kv.head_stride;
  int64_t& outer = by_head ? kv.head_stride : kv.token_stride;
  inner = spec.head_dim + kv_gap;
  outer = (by_head ? tables.page_tokens : spec.kv_heads) * inner + kv_gap;
  kv.page_stride = (by_head ? spec.kv_heads : tables.page_tokens) * outer + kv_gap;
  return kv;
}

Problem Case::problem() const {
  return {tables.batch(), attention(),     q_view(), k.data(), v.data(),
          kv(),           sinks_or_null(), k_scale,  v_scale};
}

int64_t Case::kv_elements() const { return tables.num_pages * kv().page_stride; }

int64_t Case::q_offset(int64_t row, int64_t head) const {
  if (q_row_stride == 0 && q_head_stride == 0) return (row * spec.q_heads + head) * spec.head_dim;
  return row * q_row_stride + head * q_head_stride;
}

Case subset(const Case& problem, const std::vector<int32_t>& sequences) {
  const Tables& all = problem.tables;
  const int64_t element = dtype_bytes(problem.spec.dtype);
  const int64_t head_bytes = problem.spec.head_dim * element;
  Case part;
  part.name = problem.name;
  part.spec = problem.spec;
  part.order = problem.order;
  part.kv_gap = problem.kv_gap;
  part.sinks = problem.sinks;
  part.k_scale = problem.k_scale;
  part.v_scale = problem.v_scale;
  part.k = problem.k.share();
  part.v = problem.v.share();
  part.tables.page_tokens = all.page_tokens;
  part.tables.num_pages = all.num_pages;
  std::vector<int32_t> q_rows;
  for (const int32_t s : sequences) {
    part.tables.kv_len.push_back(all.kv_len[s]);
    part.tables.page_ids.insert(part.tables.page_ids.end(),
                                all.page_ids.begin() + all.page_indptr[s],
                                all.page_ids.begin() + all.page_indptr[s + 1]);
    part.tables.page_indptr.push_back(static_cast<int32_t>(part.tables.page_ids.size()));
    for (int32_t row = all.q_indptr[s]; row < all.q_indptr[s + 1]; ++row) q_rows.push_back(row);
    part.tables.q_indptr.push_back(static_cast<int32_t>(q_rows.size()));
  }
  part.q = Buffer(q_rows.size() * problem.spec.q_heads * head_bytes);
  std::byte* to = part.q.data();
  for (const int32_t row : q_rows) {
    if (!problem.visible.empty()) part.visible.push_back(problem.visible[row]);
    if (!problem.tree_mask.empty()) part.tree_mask.push_back(problem.tree_mask[row]);
    for (int32_t head = 0; head < problem.spec.q_heads; ++head, to += head_bytes) {
      std::memcpy(to, problem.q.data() + problem.q_offset(row, head) * element, head_bytes);
    }
  }
  return part;
}

std::vector<ExpectedSegment> expected_forest(const Tables& tables) {
  std::vector<ExpectedSegment> segments;
  struct Open {  // sequences that agree on every page before `position`
    int32_t position;
    std::vector<int32_t> sequences;
  };
  std::vector<Open> open(1);
  for (int32_t s = 0; s < tables.sequences(); ++s) {
    if (tables.kv_len[s] > 0) open[0].sequences.push_back(s);
  }
  open[0].position = 0;
  while (!open.empty()) {
    const Open group = std::move(open.back());
    open.pop_back();
    std::map<int32_t, std::vector<int32_t>> by_page;
    for (const int32_t s : group.sequences) {
      by_page[page_at(tables, s, group.position)].push_back(s);
    }
    for (auto& entry : by_page) {
      auto& sequences = entry.second;
      int32_t end = group.position + 1;
      const auto agree = [&](int32_t position) {
        return std::all_of(sequences.begin(), sequences.end(), [&](int32_t s) {
          return position < pages_of(tables, s) &&
                 page_at(tables, s, position) == page_at(tables, sequences.front(), position);
        });
      };
      while (agree(end)) ++end;
      int32_t longest = 0;
      Open rest{end, {}};
      for (const int32_t s : sequences) {
        longest = std::max(longest, tables.kv_len[s]);
        if (pages_of(tables, s) > end) rest.sequences.push_back(s);
      }
      const int64_t end_token = std::min<int64_t>(longest, int64_t{end} * tables.page_tokens);
      segments.push_back({group.position * tables.page_tokens, static_cast<int32_t>(end_token),
                          std::move(sequences)});
      if (!rest.sequences.empty()) open.push_back(std::move(rest));
    }
  }
  std::sort(segments.begin(), segments.end());
  return segments;
}

std::vector<ExpectedSegment> as_expected(const Forest& forest) {
  std::vector<ExpectedSegment> segments;
  const auto order = forest.order();
  for (const Segment& s : forest.segments()) {
    std::vector<int32_t> sequences(order.begin() + s.seq_begin, order.begin() + s.seq_end);
    std::sort(sequences.begin(), sequences.end());
    segments.push_back({s.token_begin, s.token_end, std::move(sequences)});
  }
  std::sort(segments.begin(), segments.end());
  return segments;
}

}  // namespace pando::cases
