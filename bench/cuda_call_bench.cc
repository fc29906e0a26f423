// Host time of calls of the CUDA backend, which bench/python_calls.py --device cuda makes from
// Python. One JSON line for each; needs a GPU.
#include <cuda_runtime_api.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "pando/pando.h"

namespace pando {
namespace {

constexpr int kCalls = 300;

void check(cudaError_t error) {
  if (error != cudaSuccess) throw Error(ErrorCode::kDevice, cudaGetErrorString(error));
}

struct Free {
  void operator()(void* data) const { cudaFree(data); }
};
using DeviceMemory = std::unique_ptr<void, Free>;

DeviceMemory device_memory(int64_t bytes) {
  void* data = nullptr;
  check(cudaMalloc(&data, std::max<int64_t>(bytes, 256)));
  check(cudaMemset(data, 0, std::max<int64_t>(bytes, 256)));
  return DeviceMemory(data);
}

/// Microseconds of calls that find the device idle: the least and the median.
template <typename Call>
void measure(std::string_view batch, std::string_view name, Call call) {
  using Clock = std::chrono::steady_clock;
  std::vector<double> times;
  for (int i = 0; i < kCalls; ++i) {
    check(cudaDeviceSynchronize());
    const auto start = Clock::now();
    call();
    times.push_back(std::chrono::duration<double, std::micro>(Clock::now() - start).count());
  }
  check(cudaDeviceSynchronize());
  std::sort(times.begin(), times.end());
  fmt::print(
      "{{\"case\": \"{}: {}\", \"framework\": \"c++\", \"min_us\": {:.3f}, \"median_us\": "
      "{:.3f}}}\n",
      batch, name, times.front(), times[times.size() / 2]);
}

/// One query row for each sequence, of `prefix` shared and `own` own tokens.
void batch_case(std::string_view name, int32_t sequences, int32_t q_heads, int32_t kv_heads,
                int32_t prefix, int32_t own, int32_t spare) {
  constexpr int32_t kPage = 16, kHeadDim = 128;
  std::vector<int32_t> q_indptr{0}, kv_len, page_indptr{0}, ids;
  int32_t next = prefix / kPage;
  for (int32_t s = 0; s < sequences; ++s) {
    for (int32_t i = 0; i < prefix / kPage; ++i) ids.push_back(i);
    for (int32_t i = 0; i < own / kPage; ++i) ids.push_back(next++);
    q_indptr.push_back(s + 1);
    kv_len.push_back(prefix + own - spare);
    page_indptr.push_back(static_cast<int32_t>(ids.size()));
  }
  const BatchView batch{q_indptr, kv_len, page_indptr, ids, kPage};
  AttentionSpec spec;
  spec.q_heads = q_heads;
  spec.kv_heads = kv_heads;
  spec.head_dim = kHeadDim;
  spec.dtype = DType::kBF16;
  CudaExecutor executor;
  Planner planner(cuda_profile());
  Forest forest;
  forest.discover(batch);
  Plan plan;
  planner.plan(forest, spec, {}, plan);
  CudaPlan on_device(executor, 2 * plan.header().schedule_bytes);

  AttendArgs args;
  args.kv = KvLayout::nhd(next, kPage, kv_heads, kHeadDim);
  const int64_t kv_bytes = next * args.kv.page_stride * dtype_bytes(spec.dtype);
  const int64_t q_bytes = int64_t{sequences} * q_heads * kHeadDim * dtype_bytes(spec.dtype);
  const int64_t id_bytes = static_cast<int64_t>(ids.size() * sizeof(int32_t));
  const auto k = device_memory(kv_bytes), v = device_memory(kv_bytes), q = device_memory(q_bytes),
             out = device_memory(q_bytes), workspace = device_memory(2 * plan.workspace_bytes()),
             page_ids = device_memory(id_bytes);
  void* pinned = nullptr;
  check(cudaHostAlloc(&pinned, id_bytes, cudaHostAllocDefault));
  args.q.data = q.get();
  args.k = k.get();
  args.v = v.get();
  args.out.data = out.get();
  args.page_ids = {static_cast<const int32_t*>(page_ids.get()), ids.size()};
  args.workspace = {static_cast<std::byte*>(workspace.get()),
                    static_cast<size_t>(2 * plan.workspace_bytes())};
  const auto make = [&] {
    planner.plan(forest, spec, {}, plan);
    on_device.assign(plan);
    std::memcpy(pinned, ids.data(), id_bytes);
    check(cudaMemcpyAsync(page_ids.get(), pinned, id_bytes, cudaMemcpyHostToDevice, nullptr));
    on_device.upload(nullptr);
  };
  make();
  const auto run = [&] { attend(on_device, args, executor, nullptr); };
  measure(name, "attend", run);
  measure(name, "update and attend", [&] {
    forest.update(batch);
    make();
    run();
  });
  measure(name, "update, found anew, and attend", [&] {
    forest.discover(batch);
    make();
    run();
  });
  check(cudaFreeHost(pinned));
}

}  // namespace
}  // namespace pando

int main() {
  try {
    pando::batch_case("one row", 1, 1, 1, 0, 16, 0);
    pando::batch_case("64 sequences, 17408 page ids", 64, 32, 8, 4096, 256, 6);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "cuda_call_bench: %s\n", error.what());
    return 1;
  }
}
