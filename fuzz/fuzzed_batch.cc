#include "fuzzed_batch.h"

#include <algorithm>
#include <array>

namespace pando::fuzz {
namespace {

constexpr int32_t kMaxSequences = 9;
constexpr int32_t kMaxPages = 9;

int32_t interesting_number(ByteReader& in) {
  constexpr int32_t kNumbers[] = {0,   -1,  1,     2,     16,         255,
                                  256, 257, 65535, 65536, 2147483647, -2147483647 - 1};
  return in.one_in(2) ? in.take<int32_t>() : in.pick(kNumbers);
}

}  // namespace

void FuzzedBatch::add_sequence(ByteReader& in) {
  const int32_t pages = in.in_range(0, kMaxPages);
  int32_t shared = 0;
  if (sequences() > 0) {
    const int32_t other = in.in_range(0, sequences() - 1);
    const int32_t other_pages = page_indptr[other + 1] - page_indptr[other];
    shared = in.in_range(0, std::min(pages, other_pages));
    for (int32_t i = 0; i < shared; ++i) page_ids.push_back(page_ids[page_indptr[other] + i]);
  }
  // Few ids: the same page at other positions, and twice in one table, must not confuse anyone.
  for (int32_t i = shared; i < pages; ++i) page_ids.push_back(in.in_range(0, 63));
  // Entries after ceil(kv_len / page_tokens) are padding that nobody may read.
  kv_len.push_back(in.in_range(0, pages * page_tokens));
  page_indptr.push_back(static_cast<int32_t>(page_ids.size()));
  q_indptr.push_back(q_indptr.back() + in.in_range(0, 3));
}

void FuzzedBatch::corrupt(ByteReader& in) {
  const std::array<std::vector<int32_t>*, 4> parts = {&q_indptr, &kv_len, &page_indptr, &page_ids};
  std::vector<int32_t>& part = *parts[in.in_range(0, 3)];
  switch (in.in_range(0, 3)) {
    case 0: part.push_back(interesting_number(in)); break;
    case 1:
      if (!part.empty()) part.pop_back();
      break;
    case 2: page_tokens = interesting_number(in); break;
    default:
      if (!part.empty()) {
        part[in.in_range(0, static_cast<int32_t>(part.size()) - 1)] = interesting_number(in);
      }
  }
}

FuzzedBatch take_batch(ByteReader& in) {
  FuzzedBatch batch;
  batch.page_tokens = 1 << in.in_range(0, 8);
  const int32_t sequences = in.in_range(0, kMaxSequences);
  for (int32_t b = 0; b < sequences; ++b) batch.add_sequence(in);
  if (in.one_in(8)) batch.corrupt(in);
  return batch;
}

FuzzedBatch take_next_batch(ByteReader& in, const FuzzedBatch& before,
                            std::vector<int32_t>& changed) {
  FuzzedBatch next;
  next.page_tokens = before.page_tokens;
  const int32_t kept = in.one_in(4) ? in.in_range(0, before.sequences()) : before.sequences();
  for (int32_t b = 0; b < kept; ++b) {
    if (in.one_in(8)) changed.push_back(b);  // saying so of one that only goes on is allowed
    if (in.one_in(4)) {
      if (changed.empty() || changed.back() != b) changed.push_back(b);
      next.add_sequence(in);
      continue;
    }
    const int32_t tokens =
        before.kv_len[b] + (in.one_in(2) ? 1 : in.in_range(0, 2 * before.page_tokens));
    const int32_t held = (before.kv_len[b] + before.page_tokens - 1) / before.page_tokens;
    const int32_t needed = (tokens + before.page_tokens - 1) / before.page_tokens;
    const auto* first = before.page_ids.data() + before.page_indptr[b];
    next.page_ids.insert(next.page_ids.end(), first, first + held);
    for (int32_t i = held; i < needed; ++i) next.page_ids.push_back(in.in_range(0, 63));
    next.kv_len.push_back(tokens);
    next.page_indptr.push_back(static_cast<int32_t>(next.page_ids.size()));
    next.q_indptr.push_back(next.q_indptr.back() + in.in_range(0, 2));
  }
  const int32_t added = in.one_in(4) ? in.in_range(0, 4) : 0;
  for (int32_t i = 0; i < added; ++i) {
    if (next.sequences() < before.sequences()) changed.push_back(next.sequences());
    next.add_sequence(in);
  }
  return next;
}

AttentionSpec take_spec(ByteReader& in, int32_t q_rows, std::vector<VisibleRange>& visible) {
  constexpr int32_t kGroups[] = {1, 2, 3, 4, 5, 7, 8, 16};
  constexpr int32_t kHeadDims[] = {64, 128, 8, 256, 80, 0, 100, 264, -8};
  AttentionSpec spec;
  spec.kv_heads = in.in_range(0, 8) + 1;
  spec.q_heads = spec.kv_heads * (in.one_in(64) ? 128 : in.pick(kGroups));
  if (in.one_in(16)) spec.kv_heads = interesting_number(in);
  if (in.one_in(16)) spec.q_heads = interesting_number(in);
  spec.head_dim = in.pick(kHeadDims);
  spec.dtype = static_cast<DType>(in.one_in(32) ? in.take<int8_t>() : in.in_range(0, 2));
  if (in.one_in(4)) spec.scale = in.take<float>();
  spec.causal = !in.one_in(4);
  if (in.one_in(4)) spec.window = in.one_in(8) ? interesting_number(in) : in.in_range(0, 300);
  if (in.one_in(4)) {
    visible.resize(static_cast<size_t>(in.one_in(16) ? in.in_range(0, 70) : q_rows));
    for (VisibleRange& range : visible) {
      range = {in.in_range(-5, 250), in.in_range(-5, 250)};
      if (in.one_in(32)) range.end = interesting_number(in);
    }
    spec.visible = visible;
  }
  return spec;
}

void take_variants(ByteReader& in, int32_t q_rows, AttentionSpec& spec,
                   std::vector<uint64_t>& tree_mask) {
  if (in.one_in(8)) spec.soft_cap = in.take<float>();
  if (!in.one_in(4)) return;
  tree_mask.resize(static_cast<size_t>(in.one_in(16) ? in.in_range(0, 70) : q_rows));
  // Mostly bits that few rows have.
  for (uint64_t& mask : tree_mask) mask = in.take<uint64_t>() >> in.in_range(0, 63);
  spec.tree_mask = tree_mask;
  if (!in.one_in(8)) spec.visible = {}, spec.window = 0;
}

void take_kv_dtype(ByteReader& in, AttentionSpec& spec) {
  if (!in.one_in(4)) return;
  spec.kv_dtype = in.one_in(16) ? static_cast<DType>(in.take<int8_t>()) : DType::kE4M3;
}

PlanOptions take_options(ByteReader& in) {
  constexpr int32_t kCuts[] = {512, 64, 128, 1024, 0, -64, 100, 2147483647};
  PlanOptions options;
  options.sharing = static_cast<Sharing>(in.one_in(32) ? in.take<int8_t>() : in.in_range(0, 2));
  options.batch_invariant = in.one_in(3);
  options.cut_tokens = in.pick(kCuts);
  return options;
}

}  // namespace pando::fuzz
