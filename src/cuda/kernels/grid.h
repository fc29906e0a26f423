// How grids are launched whose thread blocks wait for each other.
#pragma once

#include <cuda_runtime_api.h>

namespace pando::cuda {

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
