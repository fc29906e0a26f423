// The decode loop of an engine: requests come and go, every sequence grows by a token a step, and
// all begin with the same 1024 tokens.
#include <pando/pando.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <vector>

namespace {

constexpr int32_t kPageTokens = 16, kShared = 64, kWidth = 80, kSequences = 8, kLayers = 2;

/// What an engine has anyway: a padded block table, and a length for each sequence.
struct Engine {
  std::vector<int32_t> q_indptr, kv_len, page_indptr, page_ids;
  int32_t next_page = kShared;

  Engine() : page_ids(kSequences * kWidth) {
    for (int32_t sequence = 0; sequence <= kSequences; ++sequence) {
      q_indptr.push_back(sequence);  // one query row each
      page_indptr.push_back(sequence * kWidth);
    }
    kv_len.resize(kSequences);
    for (int32_t sequence = 0; sequence < kSequences; ++sequence) admit(sequence);
  }

  void admit(int32_t sequence) {  // pages of the prompt from the prefix cache
    for (int32_t page = 0; page < kShared; ++page) page_ids[sequence * kWidth + page] = page;
    kv_len[sequence] = kShared * kPageTokens;
  }

  /// Ends one request every fourth step; returns the rows of the block table that were replaced.
  std::vector<int32_t> step(int32_t number) {
    std::vector<int32_t> changed;
    if (number % 4 == 3) {
      changed.push_back(number % kSequences);
      admit(changed[0]);
    }
    for (int32_t sequence = 0; sequence < kSequences; ++sequence) {
      const int32_t page = kv_len[sequence] / kPageTokens;
      if (kv_len[sequence]++ % kPageTokens == 0) {
        page_ids[sequence * kWidth + page] = next_page++;
      }
    }
    return changed;
  }

  pando::BatchView batch() const { return {q_indptr, kv_len, page_indptr, page_ids, kPageTokens}; }
};

}  // namespace

int main() {
  Engine engine;
  // Queries of 0 see all tokens alike. V is 0 in the shared pages and 1 in all others, so a row's
  // result is the part of its context that is its own.
  const pando::AttentionSpec spec{
      .q_heads = 8, .kv_heads = 2, .head_dim = 64, .dtype = pando::DType::kF32};
  const auto kv = pando::KvLayout::nhd(kShared + 64, kPageTokens, 2, 64);
  std::vector<float> q(kSequences * 8 * 64), out(q.size());
  std::vector<float> k(kv.num_pages * kv.page_stride, 1.0f), v(k.size());
  for (size_t i = kShared * kv.page_stride; i < v.size(); ++i) v[i] = 1.0f;
  struct alignas(64) Line : std::array<std::byte, 64> {};
  std::vector<Line> workspace;
  double largest_error = 0;

  // [integration]
  pando::CpuExecutor executor;
  pando::Planner planner(pando::cpu_profile());
  pando::Forest forest;
  pando::Plan plan;
  for (int32_t number = 0; number < 20; ++number) {
    const std::vector<int32_t> changed = engine.step(number);  // rows of other requests than before
    forest.update(engine.batch(), changed);
    planner.plan(forest, spec, {}, plan);
    workspace.resize(std::max<size_t>(workspace.size(), plan.workspace_bytes() / 64 + 1));
    for (int32_t layer = 0; layer < kLayers; ++layer) {  // each with its own q, K, V and out
      const pando::AttendArgs args{.q = {q.data()},
                                   .k = k.data(),
                                   .v = v.data(),
                                   .kv = kv,
                                   .page_ids = engine.page_ids,
                                   .out = {out.data()},
                                   .workspace = std::as_writable_bytes(std::span(workspace))};
      pando::attend(plan, args, executor);
    }
  }
  // [integration]
  for (int32_t sequence = 0; sequence < kSequences; ++sequence) {
    const double own = engine.kv_len[sequence] - kShared * kPageTokens;
    const double error = std::fabs(out[sequence * 8 * 64] - own / engine.kv_len[sequence]);
    largest_error = std::max(largest_error, error);
  }
  std::printf("%slargest error %.1e\n", pando::explain(plan).c_str(), largest_error);
  return largest_error < 1e-6 ? 0 : 1;
}
