// The instances for pages smaller than a granule.
#include "cuda/kernels/attend/instances.cuh"

namespace pando::cuda {

template class Kernels<true>;

}  // namespace pando::cuda
