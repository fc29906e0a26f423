// Host cost of discover, update and plan: 256 sequences x 8192 tokens in pages of 16.
#include <benchmark/benchmark.h>

#include <numeric>
#include <vector>

#include "pando/pando.h"

namespace {

/// A batch of `sequences` whose first `shared_pages` pages are common to all.
struct Table {
  static constexpr int32_t kPageTokens = 16;
  std::vector<int32_t> q_indptr, kv_len, page_indptr, page_ids;

  Table(int32_t sequences, int32_t tokens, int32_t shared_pages) {
    const int32_t pages = tokens / kPageTokens + 1;  // room for one more page
    int32_t next = shared_pages;
    page_indptr.push_back(0);
    for (int32_t b = 0; b < sequences; ++b) {
      for (int32_t p = 0; p < pages; ++p) page_ids.push_back(p < shared_pages ? p : next++);
      page_indptr.push_back(static_cast<int32_t>(page_ids.size()));
    }
    kv_len.assign(sequences, tokens);
    q_indptr.resize(sequences + 1);
    std::iota(q_indptr.begin(), q_indptr.end(), 0);
  }
  pando::BatchView view() const { return {q_indptr, kv_len, page_indptr, page_ids, kPageTokens}; }
};

pando::AttentionSpec llama_spec() {
  pando::AttentionSpec spec;
  spec.q_heads = 32;
  spec.kv_heads = 8;
  spec.head_dim = 128;
  return spec;
}

void args(benchmark::internal::Benchmark* bench) {
  bench->ArgNames({"sequences", "tokens", "shared_pages"});
  for (const int64_t shared : {0, 128, 511}) bench->Args({256, 8192, shared});
  bench->Args({1024, 2048, 64});
  bench->Unit(benchmark::kMicrosecond);
}

void discover(benchmark::State& state) {
  const Table table(state.range(0), state.range(1), state.range(2));
  pando::Forest forest;
  for (auto _ : state) forest.discover(table.view());
}
BENCHMARK(discover)->Apply(args);

void update_after_decode_step(benchmark::State& state) {
  Table table(state.range(0), state.range(1), state.range(2));
  pando::Forest forest;
  forest.discover(table.view());
  int32_t step = 0;
  for (auto _ : state) {
    if (++step % Table::kPageTokens == 0) {  // a full page cannot grow for ever: start again
      state.PauseTiming();
      table.kv_len.assign(table.kv_len.size(), state.range(1));
      forest.discover(table.view());
      state.ResumeTiming();
    }
    for (int32_t& tokens : table.kv_len) ++tokens;
    forest.update(table.view());
  }
}
BENCHMARK(update_after_decode_step)->Apply(args);

void update_with_one_replaced(benchmark::State& state) {
  Table table(state.range(0), state.range(1), state.range(2));
  pando::Forest forest;
  forest.discover(table.view());
  const int32_t changed[] = {7};
  for (auto _ : state) forest.update(table.view(), changed);
}
BENCHMARK(update_with_one_replaced)->Apply(args);

void plan(benchmark::State& state) {
  const Table table(state.range(0), state.range(1), state.range(2));
  pando::Forest forest;
  forest.discover(table.view());
  pando::Planner planner(pando::cpu_profile(2));
  pando::Plan plan;
  for (auto _ : state) planner.plan(forest, llama_spec(), {}, plan);
}
BENCHMARK(plan)->Apply(args);

void plan_for_h100(benchmark::State& state, bool batch_invariant) {
  const Table table(state.range(0), state.range(1), state.range(2));
  pando::Forest forest;
  forest.discover(table.view());
  pando::Planner planner(pando::h100_profile());
  pando::Plan plan;
  pando::PlanOptions options;
  options.batch_invariant = batch_invariant;
  for (auto _ : state) planner.plan(forest, llama_spec(), options, plan);
}
BENCHMARK_CAPTURE(plan_for_h100, default, false)->Apply(args);
BENCHMARK_CAPTURE(plan_for_h100, batch_invariant, true)->Apply(args);

void discover_and_plan(benchmark::State& state, const pando::DeviceProfile& profile) {
  const Table table(state.range(0), state.range(1), state.range(2));
  pando::Forest forest;
  pando::Planner planner(profile);
  pando::Plan plan;
  for (auto _ : state) {
    forest.discover(table.view());
    planner.plan(forest, llama_spec(), {}, plan);
  }
}
BENCHMARK_CAPTURE(discover_and_plan, cpu, pando::cpu_profile(2))->Apply(args);
BENCHMARK_CAPTURE(discover_and_plan, h100, pando::h100_profile())->Apply(args);

}  // namespace

BENCHMARK_MAIN();
