// Times the Hopper kernel on the project's shapes: CUDA graph replay with a cold L2, answers
// checked in the same run, one JSON line a shape.
#include <cuda_bf16.h>
#include <cuda_runtime.h>
#include <curand_kernel.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <ctime>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cases/shapes_table.h"
#include "cuda/kernels/attend/launch.h"
#include "cuda/schedule.h"
#include "pando/error.h"
#include "pando/forest.h"
#include "pando/plan.h"
#include "plan/cost_model.h"
#include "reference/oracle.h"

namespace {

using pando::cases::Case;

void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw pando::Error(pando::ErrorCode::kDevice,
                     std::string(what) + ": " + cudaGetErrorString(status));
}

/// Device memory, freed at the end of its scope.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) : count_(count) {
    check(cudaMalloc(&data_, std::max<size_t>(count, 64) * sizeof(T)), "cudaMalloc");
  }
  explicit DeviceArray(const std::vector<T>& host) : DeviceArray(host.size()) {
    check(cudaMemcpy(data_, host.data(), host.size() * sizeof(T), cudaMemcpyHostToDevice),
          "cudaMemcpy");
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  size_t size() const { return count_; }
  std::vector<T> to_host() const {
    std::vector<T> host(count_);
    check(cudaMemcpy(host.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
    return host;
  }

 private:
  T* data_ = nullptr;
  size_t count_;
};

__global__ void fill_normal(__nv_bfloat16* data, size_t count, uint64_t seed) {
  const size_t thread = blockIdx.x * size_t{blockDim.x} + threadIdx.x;
  curandStatePhilox4_32_10_t state;
  curand_init(seed, thread, 0, &state);
  for (size_t i = thread; i < count; i += size_t{gridDim.x} * blockDim.x) {
    data[i] = __float2bfloat16(curand_normal(&state));
  }
}

struct Times {
  double median_us, min_us;
  int count;
};

/// Replays `launch` as a graph, the L2 overwritten before each.
template <class Launch>
Times time_graph(const Launch& launch, cudaStream_t stream) {
  constexpr size_t kFlushBytes = 256 << 20;
  constexpr int kRuns = 25;
  DeviceArray<char> flush(kFlushBytes);
  cudaGraph_t graph;
  cudaGraphExec_t replay;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal), "capture");
  launch();
  check(cudaStreamEndCapture(stream, &graph), "capture");
  check(cudaGraphInstantiate(&replay, graph, 0), "cudaGraphInstantiate");
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "cudaEventCreate");
  check(cudaEventCreate(&end), "cudaEventCreate");
  std::vector<double> us;
  for (int i = 0; i < kRuns; ++i) {
    check(cudaMemsetAsync(flush.data(), i, kFlushBytes, stream), "cudaMemsetAsync");
    check(cudaEventRecord(begin, stream), "cudaEventRecord");
    check(cudaGraphLaunch(replay, stream), "cudaGraphLaunch");
    check(cudaEventRecord(end, stream), "cudaEventRecord");
    check(cudaStreamSynchronize(stream), "attend");
    float ms = 0;
    check(cudaEventElapsedTime(&ms, begin, end), "cudaEventElapsedTime");
    us.push_back(1e3 * ms);
  }
  std::sort(us.begin(), us.end());
  check(cudaGraphExecDestroy(replay), "cudaGraphExecDestroy");
  check(cudaGraphDestroy(graph), "cudaGraphDestroy");
  return {us[us.size() / 2], us[0], kRuns};
}

nlohmann::json run_shape(const pando::cases::Shape& shape, int page_tokens,
                         const cudaDeviceProp& card, const std::string& commit) {
  using Element = __nv_bfloat16;
  namespace pc = pando::cuda;
  const Case problem = pando::cases::shape_tables(shape, pando::DType::kBF16,
                                                  pando::cases::KvOrder::kHnd, page_tokens);
  const pando::AttentionSpec spec = problem.attention();
  const pando::KvLayout kv = problem.kv();

  const auto before = std::chrono::steady_clock::now();
  const pando::Forest forest = pando::discover(problem.tables.batch());
  pando::PlanOptions options;
  options.sharing = pando::Sharing::kAll;
  const pando::DeviceProfile profile = pando::h100_profile();
  const pando::CostModel cost(profile, spec, false);
  pando::RowOrder order;
  order.build(forest, spec);
  pando::SharingDecider sharing;
  std::vector<pando::Decision> decisions;
  sharing.decide(forest, order, cost, options, decisions);
  std::vector<int32_t> scratch;
  std::vector<pando::Run> runs;
  pando::list_runs(forest, order, sharing.shared(), options, scratch, runs);
  const int32_t blocks = card.multiProcessorCount;
  const pc::Schedule schedule =
      pc::make_schedule(forest, order, runs, spec.kv_heads, spec.group(), blocks, {});
  const double schedule_us =
      std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now() - before).count();

  const size_t q_count = size_t(forest.q_rows()) * spec.q_heads * spec.head_dim;
  const size_t kv_count = size_t(kv.num_pages) * kv.page_stride;
  DeviceArray<Element> q(q_count), k(kv_count), v(kv_count), out(q_count);
  fill_normal<<<512, 256>>>(q.data(), q_count, 1);
  fill_normal<<<512, 256>>>(k.data(), kv_count, 2);
  fill_normal<<<512, 256>>>(v.data(), kv_count, 3);
  check(cudaMemset(out.data(), 0xff, q_count * sizeof(Element)), "cudaMemset");
  std::vector<pc::Row> rows;
  for (const pando::PlanRow& row : order.rows) {
    rows.push_back({row.q_row, row.visible_begin, row.visible_end});
  }
  const DeviceArray<pc::Unit> units(schedule.units);
  const DeviceArray<int32_t> cta_begin(schedule.cta_begin), page_ids(problem.tables.page_ids);
  const DeviceArray<pc::Run> device_runs(schedule.runs);
  const DeviceArray<pc::Merge> merges(schedule.merges);
  const DeviceArray<pc::Row> device_rows(rows);
  DeviceArray<float> partial_o(size_t(schedule.partial_rows) * spec.head_dim);
  DeviceArray<float> partial_lse(schedule.partial_rows);
  DeviceArray<float> lse(size_t(forest.q_rows()) * spec.q_heads);
  DeviceArray<uint32_t> counter(1);
  check(cudaMemset(counter.data(), 0, sizeof(uint32_t)), "cudaMemset");

  const int64_t row_stride = int64_t{spec.q_heads} * spec.head_dim;
  pc::AttendParams params{};
  params.units = units.data();
  params.cta_begin = cta_begin.data();
  params.runs = device_runs.data();
  params.merge_list = merges.data();
  params.merges = static_cast<int32_t>(schedule.merges.size());
  params.grid_counter = counter.data();
  params.rows = device_rows.data();
  params.page_ids = page_ids.data();
  params.partial_o = partial_o.data();
  params.partial_lse = partial_lse.data();
  params.q = q.data();
  params.q_row_stride = params.out_row_stride = row_stride;
  params.q_head_stride = params.out_head_stride = spec.head_dim;
  params.out = out.data();
  params.lse = lse.data();
  params.packed_rows = forest.q_rows() * spec.group();
  params.q_heads = spec.q_heads;
  params.group = spec.group();
  params.page_shift = __builtin_ctz(page_tokens);
  params.box_shift = __builtin_ctz(pc::box_tokens(page_tokens));
  params.scale_log2 = spec.scale_or_default() * 1.4426950408889634f;

  cudaStream_t stream;
  check(cudaStreamCreate(&stream), "cudaStreamCreate");
  const auto launch = [&] { pc::launch_attend(params, k.data(), v.data(), kv, blocks, stream); };
  launch();
  check(cudaStreamSynchronize(stream), "attend");
  const Times times = time_graph(launch, stream);
  check(cudaStreamDestroy(stream), "cudaStreamDestroy");

  const auto host_q = q.to_host(), host_k = k.to_host(), host_v = v.to_host();
  const auto host_out = out.to_host();
  const std::vector<float> host_lse = lse.to_host();
  const pando::Problem checked{problem.tables.batch(), spec,          {host_q.data()},
                               host_k.data(),          host_v.data(), kv};
  const std::vector<int32_t> sample{0, forest.q_rows() - 1};
  const pando::CheckResult verdict =
      pando::check_result(checked, {host_out.data()}, host_lse.data(), sample);

  const double bytes =
      static_cast<double>(shape.kv_bytes(pando::DType::kBF16)) + 4.0 * static_cast<double>(q_count);
  const double roof_us = std::max(bytes / 3.0e6, static_cast<double>(shape.flops()) / 790e6);
  int clock_khz = 0;
  check(cudaDeviceGetAttribute(&clock_khz, cudaDevAttrClockRate, 0), "clock");
  char date[32];
  const std::time_t now = std::time(nullptr);
  std::strftime(date, sizeof(date), "%Y-%m-%d", std::gmtime(&now));
  return {{"shape", shape.name},
          {"page_tokens", page_tokens},
          {"device", card.name},
          {"clock_mhz", clock_khz / 1000},
          {"date", date},
          {"commit", commit},
          {"schedule_us", schedule_us},
          {"run_us", {{"median", times.median_us}, {"min", times.min_us}, {"count", times.count}}},
          {"roof_us", roof_us},
          {"pct_roof", 100 * roof_us / times.median_us},
          {"max_err", verdict.got.max_err_out},
          {"tolerance", verdict.allowed.out},
          {"max_err_lse", verdict.got.max_err_lse},
          {"tolerance_lse", verdict.allowed.lse},
          {"correct", verdict.passed()}};
}

}  // namespace

/// hopper_bench COMMIT [PAGE_TOKENS [SHAPE...]]
int main(int argc, char** argv) try {
  const std::string commit = argc > 1 ? argv[1] : "unknown";
  const int page_tokens = argc > 2 ? std::stoi(argv[2]) : 64;
  cudaDeviceProp card;
  check(cudaGetDeviceProperties(&card, 0), "cudaGetDeviceProperties");
  bool all_correct = true;
  for (const pando::cases::Shape& shape : pando::cases::shapes()) {
    const bool wanted = argc <= 3 || std::any_of(argv + 3, argv + argc, [&](const char* name) {
                          return shape.name == name;
                        });
    if (!wanted) continue;
    const nlohmann::json record = run_shape(shape, page_tokens, card, commit);
    if (record["correct"]) {
      std::printf("%s\n", record.dump().c_str());
    } else {
      std::fprintf(stderr, "wrong: %s\n", record.dump().c_str());
      all_correct = false;
    }
    std::fflush(stdout);
  }
  return all_correct ? 0 : 1;
} catch (const std::exception& error) {
  std::fprintf(stderr, "hopper_bench: %s\n", error.what());
  return 2;
}
