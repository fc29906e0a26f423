// What the objects of the CUDA backend hold.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <vector>

#include "cuda/kernels/attend/launch.h"
#include "pando/cuda.h"

namespace pando::cuda {

struct ExecutorState {
  ExecutorState() = default;
  ~ExecutorState();
  ExecutorState(const ExecutorState&) = delete;
  ExecutorState& operator=(const ExecutorState&) = delete;

  int device = 0;
  int multiprocessors = 0;
  std::vector<int32_t> placement;  ///< [multiprocessors]: see find_placement
  TensorMapCache maps;

  // Of attend with a plan in host memory.
  std::mutex mutex;
  std::unique_ptr<CudaPlan> plan;
  cudaEvent_t done = nullptr;  ///< the last such call; null before the first
};

struct PlanState {
  PlanState() = default;
  ~PlanState();
  PlanState(const PlanState&) = delete;
  PlanState& operator=(const PlanState&) = delete;

  /// What a captured call was given: its graph will be replayed with it.
  struct Captured {
    PlanHeader header;
    int64_t workspace_bytes;
    int64_t page_ids;
    int64_t num_pages;
  };

  int device = 0;
  int multiprocessors = 0;
  std::vector<int32_t> placement;  ///< of the executor
  int64_t capacity_bytes = 0;
  std::byte* pinned = nullptr;       ///< [capacity_bytes]
  std::byte* on_device = nullptr;    ///< control block, then [capacity_bytes]
  cudaEvent_t uploaded = nullptr;    ///< the last upload that is not part of a graph
  std::optional<PlanHeader> header;  ///< of the assigned plan
  bool upload_is_enqueued = false;   ///< since it was assigned
  std::optional<Captured> captured;  ///< the least of what captured calls were given

  std::byte* schedule() const { return on_device + Control::kBytes; }
};

}  // namespace pando::cuda
