// How grids are launched whose thread blocks wait for each other.
#pragma once

#include <cuda_runtime_api.h>

namespace pando::cuda {

/// Whether a grid of so many thread blocks is one of clusters of two, which see each other's shared
/// memory.
constexpr bool has_clusters(int thread_blocks) { return thread_blocks % 2 == 0; }

/// Attributes of a launch: none of its thread blocks starts unless all can.
struct GridAttributes {
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 1;

  explicit GridAttributes(bool clusters) {
    attributes[0].id = cudaLaunchAttributeCooperative;
    attributes[0].val.cooperative = 1;
    if (!clusters) return;
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {2, 1, 1};
  }
};

}  // namespace pando::cuda
