#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>
#include <curand_kernel.h>

#include <algorithm>
#include <string>

#include "cases/device.h"
#include "cuda/device.h"
#include "cuda/kernels/attend/timeline.h"
#include "pando/error.h"

namespace pando::cases {
namespace {

using cuda::check;

cudaStream_t stream_of(const DeviceStream& stream) {
  return static_cast<cudaStream_t>(stream.get());
}

__device__ void store(float* to, float value) { *to = value; }
__device__ void store(__nv_bfloat16* to, float value) { *to = __float2bfloat16(value); }
__device__ void store(__half* to, float value) { *to = __float2half(value); }
__device__ void store(__nv_fp8_e4m3* to, float value) { *to = __nv_fp8_e4m3(value); }

template <class Element>
__global__ void fill_normal_kernel(Element* data, int64_t count, float sigma, uint64_t seed) {
  const int64_t thread = blockIdx.x * int64_t{blockDim.x} + threadIdx.x;
  curandStatePhilox4_32_10_t state;
  curand_init(seed, thread, 0, &state);
  for (int64_t i = thread; i < count; i += int64_t{gridDim.x} * blockDim.x) {
    store(&data[i], curand_normal(&state) * sigma);
  }
}

template <class Element>
void fill_normal_as(std::byte* data, int64_t count, float sigma, uint64_t seed) {
  fill_normal_kernel<<<512, 256>>>(reinterpret_cast<Element*>(data), count, sigma, seed);
}

constexpr int kReadThreads = 512;
constexpr int kReadsAhead = 4;  ///< of 16 bytes, that a thread has under way

/// Groups of `sharers` neighbouring thread blocks take chunks in turns, `passes` times all of them.
__global__ void __launch_bounds__(kReadThreads)
    read_kernel(const uint4* data, int chunks, int passes, int sharers, uint32_t* sink) {
  const int groups = gridDim.x / sharers;
  uint32_t sum = 0;
  for (int64_t chunk = blockIdx.x / sharers; chunk < int64_t{chunks} * passes; chunk += groups) {
    const uint4* from = data + chunk % chunks * (kReadThreads * kReadsAhead) + threadIdx.x;
    uint4 got[kReadsAhead];
#pragma unroll
    for (int i = 0; i < kReadsAhead; ++i) got[i] = __ldcg(from + i * kReadThreads);
#pragma unroll
    for (int i = 0; i < kReadsAhead; ++i) sum ^= got[i].x ^ got[i].y ^ got[i].z ^ got[i].w;
  }
  if (sum == 0x9e3779b9) *sink = sum;  // never for zeros, but the compiler cannot know
}

struct Event {
  cudaEvent_t event = nullptr;
  Event() { check(cudaEventCreate(&event), "event"); }
  ~Event() { cudaEventDestroy(event); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
};

}  // namespace

DeviceBuffer::DeviceBuffer(size_t bytes) : bytes_(bytes) {
  void* data = nullptr;
  check(cudaMalloc(&data, std::max<size_t>(bytes, 1)), "device memory");
  data_ = {static_cast<std::byte*>(data), [](std::byte* p) { cudaFree(p); }};
}

DeviceBuffer::DeviceBuffer(std::span<const std::byte> host) : DeviceBuffer(host.size()) {
  upload(host, 0);
}

void DeviceBuffer::fill(int byte) {
  check(cudaMemset(data(), byte, bytes_), "fill");
  check(cudaDeviceSynchronize(), "fill");
}

void DeviceBuffer::fill_normal(DType dtype, int64_t count, float sigma, uint64_t seed) {
  if (count == 0) return;
  switch (dtype) {
    case DType::kF32: fill_normal_as<float>(data(), count, sigma, seed); break;
    case DType::kBF16: fill_normal_as<__nv_bfloat16>(data(), count, sigma, seed); break;
    case DType::kF16: fill_normal_as<__half>(data(), count, sigma, seed); break;
    case DType::kE4M3: fill_normal_as<__nv_fp8_e4m3>(data(), count, sigma, seed); break;
  }
  check(cudaGetLastError(), "fill_normal");
  check(cudaDeviceSynchronize(), "fill_normal");
}

void DeviceBuffer::upload(std::span<const std::byte> from, size_t offset) {
  check(cudaMemcpy(data() + offset, from.data(), from.size(), cudaMemcpyHostToDevice),
        "copy to the device");
}

void DeviceBuffer::download(std::span<std::byte> to, size_t offset) const {
  check(cudaMemcpy(to.data(), data() + offset, to.size(), cudaMemcpyDeviceToHost),
        "copy to the host");
}

DeviceStream::DeviceStream() {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  stream_ = {stream, [](void* s) { cudaStreamDestroy(static_cast<cudaStream_t>(s)); }};
}

void DeviceStream::synchronize() const {
  check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream_.get())), "stream");
}

DeviceGraph::DeviceGraph(const DeviceStream& stream, const std::function<void()>& enqueue) {
  cudaGraph_t graph = nullptr;
  check(cudaStreamBeginCapture(stream_of(stream), cudaStreamCaptureModeGlobal), "capture");
  try {
    enqueue();
  } catch (...) {
    cudaStreamEndCapture(stream_of(stream), &graph);
    if (graph != nullptr) cudaGraphDestroy(graph);
    throw;
  }
  check(cudaStreamEndCapture(stream_of(stream), &graph), "capture");
  cudaGraphExec_t replay = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&replay, graph, 0);
  cudaGraphDestroy(graph);
  check(status, "graph");
  graph_ = {replay, [](void* g) { cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(g)); }};
}

void DeviceGraph::launch(const DeviceStream& stream) const {
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph_.get()), stream_of(stream)), "graph");
}

double time_once(const DeviceStream& stream, const std::function<void()>& enqueue) {
  const Event begin, end;
  check(cudaEventRecord(begin.event, stream_of(stream)), "event");
  enqueue();
  check(cudaEventRecord(end.event, stream_of(stream)), "event");
  stream.synchronize();
  float ms = 0;
  check(cudaEventElapsedTime(&ms, begin.event, end.event), "event");
  return 1e3 * ms;
}

std::vector<double> time_replays(const DeviceGraph& graph, const DeviceStream& stream, int runs,
                                 bool cold) {
  constexpr size_t kFlushBytes = 256 << 20;
  const DeviceBuffer flush(cold ? kFlushBytes : 0);
  std::vector<double> us;
  for (int i = 0; i < runs; ++i) {
    if (cold) {
      check(cudaMemsetAsync(flush.data(), i, kFlushBytes, stream_of(stream)), "flush");
    }
    us.push_back(time_once(stream, [&] { graph.launch(stream); }));
  }
  return us;
}

std::vector<double> time_reads(const DeviceReads& reads, const DeviceStream& stream, int runs) {
  constexpr int64_t kChunkBytes = int64_t{kReadThreads} * kReadsAhead * sizeof(uint4);
  if (reads.bytes < kChunkBytes || reads.bytes % kChunkBytes != 0 || reads.passes < 1 ||
      reads.sharers < 1 || reads.thread_blocks < 1 || reads.thread_blocks % reads.sharers != 0) {
    throw Error(ErrorCode::kInvalidArgument,
                "reads: got " + std::to_string(reads.bytes) + " bytes, " +
                    std::to_string(reads.passes) + " passes, " +
                    std::to_string(reads.thread_blocks) + " thread blocks, " +
                    std::to_string(reads.sharers) + " sharers, want whole chunks of " +
                    std::to_string(kChunkBytes) + " bytes, and whole groups of sharers");
  }
  DeviceBuffer memory(reads.bytes), sink(sizeof(uint32_t));
  memory.fill(0);
  const auto enqueue = [&] {
    read_kernel<<<reads.thread_blocks, kReadThreads, 0, stream_of(stream)>>>(
        reinterpret_cast<const uint4*>(memory.data()), static_cast<int>(reads.bytes / kChunkBytes),
        reads.passes, reads.sharers, reinterpret_cast<uint32_t*>(sink.data()));
    check(cudaGetLastError(), "reads");
  };
  enqueue();  // loads the kernel, which a capture may not
  stream.synchronize();
  const DeviceGraph graph(stream, enqueue);
  return time_replays(graph, stream, runs, true);
}

std::vector<StageTime> kernel_timeline(int thread_blocks) {
  const auto warpgroups = cuda::read_timeline(thread_blocks);
  std::vector<StageTime> stages;
  for (int stage = 1; stage < cuda::kStages; ++stage) {
    std::vector<int64_t> cycles;
    for (const auto& times : warpgroups) {
      if (times[stage] > 0) cycles.push_back(times[stage]);
    }
    if (cycles.empty()) continue;
    std::ranges::sort(cycles);
    stages.push_back({std::string(cuda::kStageNames[stage]), cycles.front(),
                      cycles[cycles.size() / 2], cycles.back()});
  }
  return stages;
}

}  // namespace pando::cases
