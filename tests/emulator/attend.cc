#include "emulator/attend.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <type_traits>
#include <vector>

#include "cuda/kernels/attend/host_params.h"
#include "cuda/kernels/attend/kernel.cuh"
#include "plan/check_args.h"
#include "plan/cuda_shapes.h"

namespace pando::emulator {
namespace {

CUtensorMap tensor_map(const void* data, const KvLayout& kv, DType kv_dtype, int32_t box_tokens) {
  const cuda::TensorGeometry geometry(kv, kv_dtype, box_tokens);
  CUtensorMap map{.data = data,
                  .sizes = {},
                  .stride_bytes = {},
                  .box = {},
                  .element_bytes = static_cast<int32_t>(dtype_bytes(kv_dtype)),
                  .swizzled = cuda::is_swizzled(geometry.box[0] * dtype_bytes(kv_dtype))};
  std::ranges::copy(geometry.sizes, map.sizes);
  std::ranges::copy(geometry.stride_bytes, map.stride_bytes);
  std::ranges::copy(geometry.box, map.box);
  return map;
}

/// Clusters in some order, each with its thread blocks in theirs.
std::vector<int32_t> any_placement(int32_t thread_blocks, uint64_t seed) {
  const int32_t of_cluster = cuda::has_clusters(thread_blocks) ? 2 : 1;
  std::vector<int32_t> clusters(thread_blocks / of_cluster);
  std::iota(clusters.begin(), clusters.end(), 0);
  std::shuffle(clusters.begin(), clusters.end(), std::mt19937_64(seed));
  std::vector<int32_t> placement;
  for (const int32_t cluster : clusters) {
    for (int32_t i = 0; i < of_cluster; ++i) placement.push_back(cluster * of_cluster + i);
  }
  return placement;
}

template <class C>
void launch(int blocks, const cuda::AttendParams& params, const cuda::TensorMaps& maps,
            uint64_t seed) {
  Grid grid(blocks, C::kThreads, sizeof(cuda::SharedPlan<C>), seed);
  grid.run([&] { cuda::attend_kernel<C>(params, maps); });
}

}  // namespace

void attend(const Plan& plan, const AttendArgs& args, uint64_t seed) {
  check_args(plan, args, Backend::kCuda);
  const PlanHeader& h = plan.header();
  if (h.rows == 0) return;
  struct alignas(64) Line {
    std::byte bytes[64];
  };
  std::vector<Line> schedule(plan.schedule().size() / sizeof(Line) + 1);
  std::ranges::copy(plan.schedule(), schedule[0].bytes);
  cuda::place_starts(plan, any_placement(h.workers, seed), schedule[0].bytes);
  std::vector<uint64_t> control(cuda::Control::kBytes / sizeof(uint64_t));
  const cuda::AttendParams params =
      cuda::make_params(h, args, schedule[0].bytes, reinterpret_cast<std::byte*>(control.data()));
  const auto pages = cuda::PageShape::of(h.page_tokens);
  const int32_t big = pages.box_tokens();
  const int32_t small = pages.small_box_tokens();
  const auto map = [&](const void* data, int32_t box) {
    return tensor_map(data, args.kv, h.kv_dtype, box);
  };
  const cuda::TensorMaps maps = {map(args.k, big), map(args.v, big), map(args.k, small),
                                 map(args.v, small)};
  const bool bf16 = h.dtype == DType::kBF16;
  const auto run = [&]<class E>(E) {
    const auto of_head_dim = [&]<bool kByToken, bool kCapped, bool kFp8>(
                                 std::bool_constant<kByToken>, std::bool_constant<kCapped>,
                                 std::bool_constant<kFp8>) {
      const auto with = [&]<int kHeadDim, bool kSupported>() {
        launch<cuda::Config<E, kHeadDim, kByToken, kCapped, kFp8 && kSupported>>(h.workers, params,
                                                                                 maps, seed);
      };
      switch (h.head_dim) {
        case 64: return with.template operator()<64, true>();
        case 128: return with.template operator()<128, true>();
        default: return with.template operator()<256, false>();
      }
    };
    const auto either = [](bool yes, auto&& call) {
      yes ? call(std::true_type{}) : call(std::false_type{});
    };
    either(params.pages.by_token(), [&](auto by_token) {
      either(params.into_cap > 0, [&](auto capped) {
        either(h.kv_dtype == DType::kE4M3, [&](auto fp8) { of_head_dim(by_token, capped, fp8); });
      });
    });
  };
  bf16 ? run(__nv_bfloat16{}) : run(__half{});
}

}  // namespace pando::emulator
