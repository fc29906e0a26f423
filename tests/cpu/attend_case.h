// An attention problem in memory, built for tests of the CPU backend and checked by the oracle.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <new>
#include <random>
#include <span>
#include <vector>

#include "core/convert.h"
#include "core/mask.h"
#include "cpu/run_plan.h"
#include "pando/pando.h"
#include "reference/oracle.h"

namespace pando::testing {

/// One sequence: its query rows and tokens, and how many whole pages it takes from the shared ones.
struct Sequence {
  int32_t q_len;
  int32_t kv_len;
  int32_t shared_pages = 0;
};

enum class Layout { kHnd, kNhd, kPadded };

/// Memory aligned to 64 bytes.
class Workspace {
 public:
  explicit Workspace(int64_t bytes) : bytes_(bytes) {
    data_ = static_cast<std::byte*>(::operator new (bytes + 64, std::align_val_t{64}));
    std::fill_n(data_, bytes + 64, std::byte{0xff});  // NaN: nothing in it may be trusted
  }
  ~Workspace() { ::operator delete (data_, std::align_val_t{64}); }
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  std::span<std::byte> span() const { return {data_, static_cast<size_t>(bytes_)}; }

 private:
  std::byte* data_;
  int64_t bytes_;
};

/// Bitwise equality, for which NaN equals itself.
template <class T>
bool same_bits(std::span<const T> a, std::span<const T> b) {
  return std::ranges::equal(std::as_bytes(a), std::as_bytes(b));
}

struct Output {
  std::vector<std::byte> out;
  std::vector<float> lse;
  friend bool operator==(const Output& a, const Output& b) {
    return a.out == b.out && same_bits(std::span(a.lse), std::span(b.lse));
  }
};

struct AttendCase {
  AttentionSpec spec;
  int32_t page_tokens = 16;
  std::vector<int32_t> q_indptr{0}, kv_len, page_indptr{0}, page_ids;
  KvLayout kv;
  std::vector<std::byte> q, k, v;
  int32_t q_rows = 0;
  std::vector<float> sinks;             ///< empty, or [q_heads]
  std::vector<uint64_t> tree_mask;      ///< empty, or [q_rows]
  std::vector<float> k_scale, v_scale;  ///< of fp8 KV, one for each head; else empty

  AttendCase(AttentionSpec s, int32_t tokens_a_page, const std::vector<Sequence>& sequences,
             Layout layout = Layout::kHnd, uint32_t seed = 1)
      : spec(s), page_tokens(tokens_a_page) {
    int32_t shared = 0;
    for (const Sequence& sequence : sequences) shared = std::max(shared, sequence.shared_pages);
    int32_t next = shared;
    for (const Sequence& sequence : sequences) {
      q_indptr.push_back(q_indptr.back() + sequence.q_len);
      kv_len.push_back(sequence.kv_len);
      const int32_t pages = (sequence.kv_len + page_tokens - 1) / page_tokens;
      for (int32_t i = 0; i < pages; ++i) {
        page_ids.push_back(i < sequence.shared_pages ? i : next++);
      }
      page_indptr.push_back(static_cast<int32_t>(page_ids.size()));
    }
    q_rows = q_indptr.back();
    // Page ids in shuffled order, with unused pages between them.
    std::mt19937 random(seed);
    std::vector<int32_t> names(next * 2 + 1);
    for (size_t i = 0; i < names.size(); ++i) names[i] = static_cast<int32_t>(i);
    std::shuffle(names.begin(), names.end(), random);
    for (int32_t& id : page_ids) id = names[id];
    const auto pages = static_cast<int64_t>(names.size());
    kv = layout == Layout::kHnd ? KvLayout::hnd(pages, page_tokens, spec.kv_heads, spec.head_dim)
                                : KvLayout::nhd(pages, page_tokens, spec.kv_heads, spec.head_dim);
    if (layout == Layout::kPadded) {
      kv.head_stride = spec.head_dim + 3;
      kv.token_stride = kv.head_stride * spec.kv_heads + 5;
      kv.page_stride = kv.token_stride * page_tokens + 7;
    }
    q = normal(int64_t{q_rows} * spec.q_heads * spec.head_dim, spec.dtype, random);
    k = normal(kv.num_pages * kv.page_stride, kv_dtype(), random);
    v = normal(kv.num_pages * kv.page_stride, kv_dtype(), random);
    if (kv_dtype() != DType::kE4M3) return;
    for (int32_t h = 0; h < spec.kv_heads; ++h) {
      k_scale.push_back(0.7f + 0.2f * static_cast<float>(h % 3));
      v_scale.push_back(1.3f - 0.3f * static_cast<float>(h % 3));
    }
  }

  DType kv_dtype() const { return spec.kv_dtype_or_default(); }
  static std::vector<std::byte> normal(int64_t count, DType dtype, std::mt19937& random) {
    std::vector<std::byte> data(count * dtype_bytes(dtype));
    std::normal_distribution<float> draw;
    for (int64_t i = 0; i < count; ++i) store_element(data.data(), i, dtype, draw(random));
    return data;
  }

  BatchView batch() const { return {q_indptr, kv_len, page_indptr, page_ids, page_tokens}; }
  AttentionSpec attention() const {
    AttentionSpec full = spec;
    full.tree_mask = tree_mask;
    return full;
  }
  const float* sinks_or_null() const { return sinks.empty() ? nullptr : sinks.data(); }
  Problem problem() const {
    return {batch(), attention(),     {q.data(), 0, 0}, k.data(), v.data(),
            kv,      sinks_or_null(), k_scale,          v_scale};
  }
  /// Draft tokens of every sequence as a random tree: each row sees itself and its ancestors.
  void draw_trees(uint32_t seed) {
    std::mt19937 random(seed);
    tree_mask.assign(q_rows, 0);
    for (size_t s = 0; s < kv_len.size(); ++s) {
      for (int32_t row = q_indptr[s]; row < q_indptr[s + 1]; ++row) {
        const int32_t node = row - q_indptr[s];
        const auto parent = static_cast<int32_t>(random() % (node + 1));  // node: it is a root
        const uint64_t above = parent == node ? 0 : tree_mask[q_indptr[s] + parent];
        tree_mask[row] = above | uint64_t{1} << node;
      }
    }
  }
  /// One sequence as a batch of its own: on the same pages, with the same queries.
  AttendCase alone(int32_t sequence) const {
    AttendCase one = *this;
    const int32_t first = q_indptr[sequence], end = q_indptr[sequence + 1];
    const int64_t row_bytes = row_elements() * dtype_bytes(spec.dtype);
    one.q_indptr = {0, end - first};
    one.kv_len = {kv_len[sequence]};
    one.page_indptr = {page_indptr[sequence], page_indptr[sequence + 1]};
    one.q_rows = end - first;
    one.q.assign(q.begin() + first * row_bytes, q.begin() + end * row_bytes);
    if (!tree_mask.empty()) {
      one.tree_mask.assign(tree_mask.begin() + first, tree_mask.begin() + end);
    }
    return one;
  }
  int64_t row_elements() const { return int64_t{spec.q_heads} * spec.head_dim; }
  /// Expects that the rows of a sequence have the bits that they have in the output of all.
  void expect_same_rows(int32_t sequence, const Output& one, const Output& all) const {
    const int32_t first = q_indptr[sequence], rows = q_indptr[sequence + 1] - first;
    const int64_t row_bytes = row_elements() * dtype_bytes(spec.dtype);
    EXPECT_EQ(std::memcmp(one.out.data(), all.out.data() + first * row_bytes, rows * row_bytes), 0);
    EXPECT_TRUE(same_bits(std::span(one.lse),
                          std::span(all.lse).subspan(first * spec.q_heads, one.lse.size())));
  }
  /// Whether a row of a sequence sees a token of it.
  bool sees(int32_t sequence, int32_t row, int32_t token) const {
    const int32_t first = q_indptr[sequence];
    return row_mask(attention(), first + row, row, q_indptr[sequence + 1] - first, kv_len[sequence])
        .sees(token);
  }

  /// Element offset of the K and V of a token of a sequence.
  int64_t token_offset(int32_t sequence, int32_t token, int32_t head) const {
    const int32_t page = page_ids[page_indptr[sequence] + token / page_tokens];
    return kv.offset(page, head, token % page_tokens);
  }
  void fill_token(std::vector<std::byte>& tensor, int32_t sequence, int32_t token, float value) {
    for (int32_t h = 0; h < spec.kv_heads; ++h) {
      const int64_t at = token_offset(sequence, token, h);
      for (int32_t d = 0; d < spec.head_dim; ++d) {
        store_element(tensor.data(), at + d, kv_dtype(), value);
      }
    }
  }

  Plan plan(const DeviceProfile& profile, const PlanOptions& options = {}) const {
    return pando::plan(discover(batch()), attention(), profile, options);
  }
  AttendArgs args(Output& output, std::span<std::byte> workspace) const {
    AttendArgs a;
    a.q = {q.data(), 0, 0};
    a.k = k.data();
    a.v = v.data();
    a.kv = kv;
    a.page_ids = page_ids;
    a.out = {output.out.data(), 0, 0};
    a.lse = output.lse.data();
    a.workspace = workspace;
    a.sinks = sinks_or_null();
    a.k_scale = k_scale;
    a.v_scale = v_scale;
    return a;
  }
  Output blank_output() const {
    const int64_t heads = int64_t{q_rows} * spec.q_heads;
    Output output;
    output.out.assign(heads * spec.head_dim * dtype_bytes(spec.dtype), std::byte{0xff});
    output.lse.assign(heads, std::numeric_limits<float>::quiet_NaN());
    return output;
  }
  Output run(const Plan& plan, const KernelSet& kernels, ThreadPool& pool) const {
    const Workspace workspace(plan.workspace_bytes());
    Output output = blank_output();
    run_plan(plan, args(output, workspace.span()), kernels, pool);
    return output;
  }
  CheckResult check(const Output& output) const {
    return check_result(problem(), {output.out.data(), 0, 0}, output.lse.data());
  }
};

/// A profile with `workers` threads whose tiles of up to `narrow_rows` rows take the narrow kernel.
inline DeviceProfile profile_with(int workers, int32_t narrow_rows) {
  DeviceProfile profile = cpu_profile(workers);
  for (KernelRate& rate : profile.rates) rate.narrow_rows = narrow_rows;
  return profile;
}

}  // namespace pando::testing
