// The instances of the kernel, those for small pages and all others each in a source file of its
// own, so that they are compiled side by side.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <type_traits>

#include "cuda/device.h"
#include "cuda/kernels/attend/kernel.cuh"
#include "cuda/kernels/attend/launch.h"
#include "cuda/kernels/grid.h"

namespace pando::cuda {

template <CudaShape shape, bool kByToken, bool kCapped, bool kFp8>
using ConfigOf = Config<std::conditional_t<shape.dtype == DType::kBF16, __nv_bfloat16, __half>,
                        shape.head_dim, kByToken, kCapped, kFp8>;

#if defined(PANDO_TIMELINE)
template <class C>
constexpr int32_t kSharedBytes = kMostSharedBytes;  // see timeline.cuh
#else
template <class C>
constexpr int32_t kSharedBytes = sizeof(SharedPlan<C>);
#endif

/// The instances that are kByToken, or those that are not.
template <bool kByToken>
class Kernels {
 public:
  /// Lets them have the shared memory that they need, on the current device.
  static void prepare() {
    for (const CudaShape& shape : kCudaShapes) {
      any(shape, [&]<class C>() {
        check(cudaFuncSetAttribute(attend_kernel<C>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                   kSharedBytes<C>),
              "attend: shared memory");
        return false;
      });
    }
  }
  /// False when there is none for the launch.
  static bool launch(const AttendLaunch& launch, const TensorMaps& maps) {
    return any(launch.shape, [&]<class C>() {
      if (C::kCapped != (launch.params.into_cap > 0) ||
          C::kFp8 != (launch.kv_dtype == DType::kE4M3)) {
        return false;
      }
      launch_as<C>(launch, maps);
      return true;
    });
  }

 private:
  template <class C>
  static void launch_as(const AttendLaunch& launch, const TensorMaps& maps) {
    GridAttributes grid(has_clusters(launch.thread_blocks));
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(launch.thread_blocks);
    config.blockDim = dim3(C::kThreads);
    config.dynamicSmemBytes = kSharedBytes<C>;
    config.stream = launch.stream;
    config.attrs = grid.attributes;
    config.numAttrs = grid.count;
    check(cudaLaunchKernelEx(&config, attend_kernel<C>, launch.params, maps), "attend: launch");
  }
  /// Calls `call` with every Config of a shape, one after another, until it returns true.
  template <CudaShape shape, class Call>
  static bool any(Call&& call) {
    const auto with = [&]<bool kCapped, bool kFp8>() {
      return call.template operator()<ConfigOf<shape, kByToken, kCapped, kFp8>>();
    };
    if (with.template operator()<false, false>() || with.template operator()<true, false>()) {
      return true;
    }
    if constexpr (cuda_supports_fp8(shape.head_dim)) {
      return with.template operator()<false, true>() || with.template operator()<true, true>();
    }
    return false;
  }
  /// The same with those of a shape `shape`; false when the table does not have it.
  template <size_t I = 0, class Call>
  static bool any(const CudaShape& shape, Call&& call) {
    if constexpr (I < kCudaShapes.size()) {
      if (kCudaShapes[I] != shape) return any<I + 1>(shape, call);
      return any<kCudaShapes[I]>(call);
    }
    return false;
  }
};

}  // namespace pando::cuda
