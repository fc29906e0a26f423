// Rates of the CPU kernels (GFLOP/s, GB/s by rows) and of whole attend calls with and without
// sharing.
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <random>
#include <string>
#include <vector>

#include "cpu/kernels.h"
#include "cpu/matrix.h"
#include "cpu/probe.h"
#include "pando/pando.h"

namespace pando {
namespace {

/// Shared by all cases, so that memory is touched once: as large as the largest case.
class Memory {
 public:
  static const std::byte* of(int64_t bytes) {
    static Memory memory;
    if (memory.bytes_ < bytes) memory.grow(bytes);
    return memory.data_.get();
  }

 private:
  struct Free {
    void operator()(std::byte* data) const { ::operator delete (data, std::align_val_t{64}); }
  };
  void grow(int64_t bytes) {
    data_.reset(static_cast<std::byte*>(::operator new (bytes, std::align_val_t{64})));
    bytes_ = bytes;
    // Small finite values in every element type: the high byte stays below the exponent's top.
    std::mt19937 random(7);
    for (int64_t i = 0; i + 4 <= bytes; i += 4) {
      const uint32_t bits = (random() & 0x807f807fu) | 0x3c003c00u;
      std::memcpy(data_.get() + i, &bits, 4);
    }
  }
  std::unique_ptr<std::byte, Free> data_;
  int64_t bytes_ = 0;
};

std::unique_ptr<std::byte[]> aligned_block(int64_t bytes, std::byte*& aligned) {
  auto block = std::make_unique<std::byte[]>(bytes + 64);
  aligned = reinterpret_cast<std::byte*>((reinterpret_cast<uintptr_t>(block.get()) + 63) / 64 * 64);
  return block;
}

/// One kernel on a tile of `rows` rows; the KV of consecutive calls is `span_bytes` of memory.
void kernel_case(benchmark::State& state, UnitKernel kernel, bool tiles, DType dtype, int32_t rows,
                 int32_t head_dim, int64_t span_bytes) {
  KernelProbe probe(dtype, rows, head_dim, 2048, span_bytes);
  const MatrixTiles configured(tiles);
  for (auto _ : state) probe.run(kernel);
  const auto calls = static_cast<double>(state.iterations());
  using benchmark::Counter;
  state.counters["GFLOP/s"] = Counter(calls * probe.flops() / 1e9, Counter::kIsRate);
  state.counters["GB/s"] = Counter(calls * probe.kv_bytes() / 1e9, Counter::kIsRate);
  state.counters["ns_token"] = Counter(calls * 2048 / 1e9, Counter::kIsRate | Counter::kInvert);
}

void register_kernels() {
  struct Path {
    std::string name;
    UnitKernel kernel;
    bool tiles;
    DType dtype;
  };
  std::vector<Path> paths;
  for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    const std::string_view name = dtype_name(dtype);
    paths.push_back({fmt::format("narrow/{}", name), narrow_kernel(dtype, dtype), false, dtype});
    paths.push_back({fmt::format("wide/{}", name), wide_kernel(dtype, dtype), false, dtype});
  }
  if (tiles_available()) paths.push_back({"tiles/bf16", attend_tiles, true, DType::kBF16});
  if (dots_available()) {
    paths.push_back({"dots/bf16", attend_dots, false, DType::kBF16});
    paths.push_back({"narrow_dots/bf16", attend_few_dots, false, DType::kBF16});
  }
  for (const Path& path : paths) {
    for (const int32_t rows : {1, 2, 4, 8, 16, 32, 48, 64, 128, 256}) {
      if (path.name.starts_with("narrow") && rows > 16) continue;
      for (const bool cold : {false, true}) {
        const std::string name =
            fmt::format("{}/rows:{}/{}", path.name, rows, cold ? "memory" : "cache");
        benchmark::RegisterBenchmark(name.c_str(), kernel_case, path.kernel, path.tiles, path.dtype,
                                     rows, 128, cold ? int64_t{512} << 20 : 0);
      }
    }
  }
}

/// A batch of `sequences` with one query row each, of the shapes in docs/targets.md.
struct Shape {
  const char* name;
  int32_t sequences, q_heads, kv_heads, prefix, suffix;
};

void attend_case(benchmark::State& state, Shape shape, DType dtype, Sharing sharing, int threads) {
  constexpr int32_t kPageTokens = 64;
  constexpr int32_t kHeadDim = 128;
  const int32_t prefix_pages = shape.prefix / kPageTokens;
  const int32_t own_pages =
      (shape.prefix % kPageTokens + shape.suffix + kPageTokens - 1) / kPageTokens;
  std::vector<int32_t> q_indptr{0}, kv_len, page_indptr{0}, page_ids;
  int32_t next = prefix_pages;
  for (int32_t s = 0; s < shape.sequences; ++s) {
    for (int32_t i = 0; i < prefix_pages; ++i) page_ids.push_back(i);
    for (int32_t i = 0; i < own_pages; ++i) page_ids.push_back(next++);
    q_indptr.push_back(s + 1);
    kv_len.push_back(shape.prefix + shape.suffix);
    page_indptr.push_back(static_cast<int32_t>(page_ids.size()));
  }
  AttentionSpec spec;
  spec.q_heads = shape.q_heads;
  spec.kv_heads = shape.kv_heads;
  spec.head_dim = kHeadDim;
  spec.dtype = dtype;
  PlanOptions options;
  options.sharing = sharing;
  const Plan p = plan(discover({q_indptr, kv_len, page_indptr, page_ids, kPageTokens}), spec,
                      cpu_profile(threads), options);

  AttendArgs args;
  args.kv = KvLayout::hnd(next, kPageTokens, shape.kv_heads, kHeadDim);
  const int64_t tensor_bytes = next * args.kv.page_stride * dtype_bytes(dtype);
  const int64_t q_bytes = int64_t{shape.sequences} * shape.q_heads * kHeadDim * dtype_bytes(dtype);
  args.k = Memory::of(2 * tensor_bytes + q_bytes);
  args.v = Memory::of(2 * tensor_bytes) + tensor_bytes;
  args.q.data = Memory::of(2 * tensor_bytes) + 2 * tensor_bytes;
  args.page_ids = page_ids;
  const auto out = std::make_unique<std::byte[]>(q_bytes);
  args.out.data = out.get();
  std::byte* workspace = nullptr;
  const auto block = aligned_block(p.workspace_bytes(), workspace);
  args.workspace = {workspace, static_cast<size_t>(p.workspace_bytes())};
  CpuExecutor executor(threads);
  for (auto _ : state) attend(p, args, executor);
  const auto calls = static_cast<double>(state.iterations());
  using benchmark::Counter;
  const PlanCost& cost = p.cost();
  const double roof_bytes = static_cast<double>(cost.kv_bytes + cost.io_bytes);
  state.counters["GB/s"] = Counter(calls * roof_bytes / 1e9, Counter::kIsRate);
  state.counters["GFLOP/s"] =
      Counter(calls * static_cast<double>(cost.flops) / 1e9, Counter::kIsRate);
  state.counters["predicted_us"] = cost.predicted_us;
}

void register_shapes() {
  // So little work that the call itself is what is measured; bench/python_calls.py has the same.
  benchmark::RegisterBenchmark("attend/one-call/fp32/1-thread", attend_case,
                               Shape{"one-call", 1, 1, 1, 0, 16}, DType::kF32, Sharing::kNone, 1);
  const Shape shapes[] = {{"l3-8", 8, 32, 8, 1024, 128},      {"l3-32", 32, 32, 8, 2048, 256},
                          {"mha32-a", 32, 32, 32, 1024, 128}, {"tp8", 8, 8, 1, 4000, 128},
                          {"noshare-16", 16, 32, 8, 0, 2048}, {"l3-1", 1, 32, 8, 0, 8192}};
  for (const Shape& shape : shapes) {
    for (const DType dtype : {DType::kBF16, DType::kF32, DType::kF16}) {
      for (const Sharing sharing : {Sharing::kAuto, Sharing::kNone}) {
        if (shape.prefix == 0 && sharing == Sharing::kAuto) continue;
        const std::string name = fmt::format("attend/{}/{}/{}", shape.name, dtype_name(dtype),
                                             sharing == Sharing::kAuto ? "auto" : "unshared");
        benchmark::RegisterBenchmark(name.c_str(), attend_case, shape, dtype, sharing, 0)
            ->UseRealTime()
            ->Unit(benchmark::kMicrosecond);
      }
    }
  }
}

}  // namespace
}  // namespace pando

int main(int argc, char** argv) {
  pando::register_kernels();
  pando::register_shapes();
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  benchmark::AddCustomContext("kernels", std::string(pando::cpu_simd_name()));
  benchmark::RunSpecifiedBenchmarks();
  return 0;
}
