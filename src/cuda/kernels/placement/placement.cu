#include <algorithm>
#include <numeric>

#include "cuda/device.h"
#include "cuda/kernels/attend/params.h"
#include "cuda/kernels/grid.h"
#include "cuda/kernels/placement/launch.h"
#include "cuda/ptx/special_registers.cuh"

namespace pando::cuda {
namespace {

/// Each thread block says on which multiprocessor it runs, and stays there until all have.
__global__ void placement_kernel(uint32_t* multiprocessors, uint32_t* said) {
  multiprocessors[blockIdx.x] = ptx::smid();
  atomicAdd(said, 1);
  while (atomicAdd(said, 0) < gridDim.x) {
  }
}

void check(cudaError_t status) { cuda::check(status, "device: its multiprocessors in pairs"); }

/// Memory of the current device.
class Words {
 public:
  explicit Words(int count) { check(cudaMalloc(&data_, count * sizeof(uint32_t))); }
  ~Words() { cudaFree(data_); }
  Words(const Words&) = delete;
  Words& operator=(const Words&) = delete;
  uint32_t* data() const { return static_cast<uint32_t*>(data_); }

 private:
  void* data_ = nullptr;
};

/// By thread block, the multiprocessor on which it ran.
std::vector<uint32_t> run(int thread_blocks, bool clusters) {
  const Words words(thread_blocks + 1);
  uint32_t* const said = words.data() + thread_blocks;
  check(cudaMemset(said, 0, sizeof(*said)));
  GridAttributes grid(clusters);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(thread_blocks);
  config.blockDim = dim3(1);
  config.dynamicSmemBytes = kMostSharedBytes;  // one thread block a multiprocessor
  config.attrs = grid.attributes;
  config.numAttrs = grid.count;
  check(cudaLaunchKernelEx(&config, placement_kernel, words.data(), said));
  std::vector<uint32_t> multiprocessors(thread_blocks);
  check(cudaMemcpy(multiprocessors.data(), words.data(), thread_blocks * sizeof(uint32_t),
                   cudaMemcpyDeviceToHost));
  return multiprocessors;
}

}  // namespace

std::vector<int32_t> find_placement(int thread_blocks) {
  std::vector<int32_t> own(thread_blocks);
  std::iota(own.begin(), own.end(), 0);
  if (!has_clusters(thread_blocks)) return own;
  check(cudaFuncSetAttribute(placement_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             kMostSharedBytes));
  const std::vector<uint32_t> plain = run(thread_blocks, false);
  const std::vector<uint32_t> clustered = run(thread_blocks, true);
  std::vector<int32_t> placement;
  for (int i = 0; i < thread_blocks; ++i) {
    const auto there = static_cast<int32_t>(std::ranges::find(plain, clustered[i]) - plain.begin());
    const bool stays = i % 2 == 0 ? there % 2 == 0 : there == placement.back() + 1;
    if (there == thread_blocks || !stays) return own;
    placement.push_back(there);
  }
  return std::ranges::is_permutation(placement, own) ? placement : own;
}

}  // namespace pando::cuda
