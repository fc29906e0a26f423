// Eight sequences share a prompt of 1024 tokens, and each has 16 tokens of its own.
#include <pando/pando.h>

#include <cmath>
#include <cstdio>
#include <vector>

int main() {
  // Page tables as a serving engine keeps them: 64 pages in common, then one page of one's own.
  std::vector<int32_t> q_indptr{0}, page_indptr{0}, page_ids;
  const std::vector<int32_t> kv_len(8, 65 * 16);
  for (int32_t sequence = 0; sequence < 8; ++sequence) {
    for (int32_t page = 0; page < 65; ++page) page_ids.push_back(page < 64 ? page : 64 + sequence);
    page_indptr.push_back(65 * (sequence + 1));
    q_indptr.push_back(sequence + 1);  // one query row each: a decode step
  }
  // 8 query heads read 2 kv heads of 64 dims. Queries of 0 see all tokens alike; V is 0, then 1.
  const auto kv = pando::KvLayout::nhd(72, 16, 2, 64);
  std::vector<float> q(8 * 8 * 64), k(72 * kv.page_stride, 1.0f), v(k.size()), out(q.size());
  for (size_t i = 64 * kv.page_stride; i < v.size(); ++i) v[i] = 1.0f;
  // [readme]
  const auto forest = pando::discover({q_indptr, kv_len, page_indptr, page_ids, 16});
  const pando::AttentionSpec spec{
      .q_heads = 8, .kv_heads = 2, .head_dim = 64, .dtype = pando::DType::kF32};
  const auto plan = pando::plan(forest, spec, pando::cpu_profile());
  struct alignas(64) Line : std::array<std::byte, 64> {};
  std::vector<Line> workspace(plan.workspace_bytes() / 64 + 1);
  const pando::AttendArgs args{.q = {q.data()},
                               .k = k.data(),
                               .v = v.data(),
                               .kv = kv,
                               .page_ids = page_ids,
                               .out = {out.data()},
                               .workspace = std::as_writable_bytes(std::span(workspace))};
  pando::CpuExecutor executor;
  pando::attend(plan, args, executor);
  // [readme]
  std::printf("%sout[0] = %.6f, want %.6f\n", pando::explain(plan).c_str(), out[0], 1.0 / 65);
  return std::fabs(out[0] - 1.0f / 65) < 1e-6f ? 0 : 1;
}
