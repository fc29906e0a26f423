// Misuse of the CUDA backend on a machine with a GPU: refused by name, and nothing is launched.
#include <cuda_runtime_api.h>

#include <cstring>
#include <functional>
#include <memory>

#include "cases/device_case.h"
#include "cuda/device_test.h"
#include "support/message_of.h"

namespace pando::cases {
namespace {

using pando::testing::message_of;

class CudaErrors : public DeviceTest {
 protected:
  void SetUp() override {
    DeviceTest::SetUp();
    if (IsSkipped()) return;
    problem_ = device_case(prefix_shape(6, 64, 20));
    runner_.attend(problem_, {});
    inputs_ = std::make_unique<DeviceCase>(problem_);
    out_ = DeviceBuffer(6 * 8 * 128 * 2);
    lse_ = DeviceBuffer(6 * 8 * sizeof(float));
    workspace_ = DeviceBuffer(runner_.plan().workspace_bytes() + 64);
    plan_ = std::make_unique<CudaPlan>(executor(), 1 << 20);
    plan_->assign(runner_.plan());
    plan_->upload(nullptr);
  }

  CudaExecutor& executor() { return runner_.cuda().executor; }

  AttendArgs args() const {
    AttendArgs a = inputs_->inputs();
    a.out = {out_.data(), 0, 0};
    a.lse = reinterpret_cast<float*>(lse_.data());
    a.workspace = {workspace_.data(), workspace_.size()};
    return a;
  }

  /// The call must be refused, and out stay as it was.
  void expect_refused(ErrorCode code, const std::string& want,
                      const std::function<void(AttendArgs&)>& spoil) {
    out_.fill(kPoison);
    AttendArgs spoilt = args();
    spoil(spoilt);
    const std::string message =
        message_of(code, [&] { attend(*plan_, spoilt, executor(), nullptr); });
    EXPECT_EQ(message.substr(0, want.size()), want) << message;
    EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
    Buffer host(out_.size());
    out_.download(host.span());
    EXPECT_TRUE(is_poison(host.data(), host.size())) << want;
  }

  Runner runner_{0, Backend::kCuda};
  Case problem_;
  std::unique_ptr<DeviceCase> inputs_;
  std::unique_ptr<CudaPlan> plan_;
  DeviceBuffer out_, lse_, workspace_;
};

TEST_F(CudaErrors, memory_of_the_host_is_refused) {
  constexpr auto kCode = ErrorCode::kTypeMismatch;
  alignas(64) static std::byte host[1 << 16];
  expect_refused(kCode, "q: got memory of the host", [](AttendArgs& a) { a.q.data = host; });
  expect_refused(kCode, "k: got memory of the host", [](AttendArgs& a) { a.k = host; });
  expect_refused(kCode, "v: got memory of the host", [](AttendArgs& a) { a.v = host; });
  expect_refused(kCode, "out: got memory of the host", [](AttendArgs& a) { a.out.data = host; });
  expect_refused(kCode, "lse: got memory of the host",
                 [](AttendArgs& a) { a.lse = reinterpret_cast<float*>(host); });
  expect_refused(kCode, "sinks: got memory of the host",
                 [](AttendArgs& a) { a.sinks = reinterpret_cast<const float*>(host); });
  expect_refused(kCode, "page_ids: got memory of the host", [](AttendArgs& a) {
    a.page_ids = {reinterpret_cast<const int32_t*>(host), a.page_ids.size()};
  });
  if (runner_.plan().workspace_bytes() > 0) {
    expect_refused(kCode, "workspace: got memory of the host", [](AttendArgs& a) {
      a.workspace = {host, a.workspace.size()};
    });
  }
}

TEST_F(CudaErrors, memory_of_another_device_is_refused) {
  int devices = 0;
  ASSERT_EQ(cudaGetDeviceCount(&devices), cudaSuccess);
  if (devices < 2) GTEST_SKIP() << "needs two GPUs, has " << devices;
  ASSERT_EQ(cudaSetDevice(1), cudaSuccess);
  const DeviceBuffer there(1 << 16);
  ASSERT_EQ(cudaSetDevice(0), cudaSuccess);
  expect_refused(ErrorCode::kTypeMismatch, "q: got memory of CUDA device 1",
                 [&](AttendArgs& a) { a.q.data = there.data(); });
}

TEST_F(CudaErrors, arguments_are_checked_before_a_launch) {
  constexpr auto kCode = ErrorCode::kInvalidArgument;
  expect_refused(kCode, "q: got a null", [](AttendArgs& a) { a.q.data = nullptr; });
  expect_refused(kCode, "page_ids: got", [](AttendArgs& a) { a.page_ids = a.page_ids.first(2); });
  expect_refused(kCode, "kv.num_pages: got 1", [](AttendArgs& a) { a.kv.num_pages = 1; });
  expect_refused(kCode, "kv.head_dim: got 64", [](AttendArgs& a) { a.kv.head_dim = 64; });
}

TEST_F(CudaErrors, managed_memory_is_memory_of_the_device) {
  void* managed = nullptr;
  ASSERT_EQ(cudaMallocManaged(&managed, problem_.q.size()), cudaSuccess);
  std::memcpy(managed, problem_.q.data(), problem_.q.size());
  AttendArgs with_managed = args();
  with_managed.q.data = managed;
  attend(*plan_, with_managed, executor(), nullptr);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
  EXPECT_EQ(cudaFree(managed), cudaSuccess);
}

TEST_F(CudaErrors, scales_of_fp8_must_be_there_and_on_the_device) {
  Case fp8 = device_case(prefix_shape(6, 64, 20));
  fp8.spec.kv_dtype = DType::kE4M3;
  fill_data(fp8, {.seed = 3});
  const Plan made = plan(discover(fp8.tables.batch()), fp8.attention(), cuda_profile());
  const DeviceCase inputs(fp8);
  const auto refusal = [&](ErrorCode code, const std::function<void(AttendArgs&)>& spoil) {
    AttendArgs a = args();
    const AttendArgs from = inputs.inputs();
    a.k = from.k;
    a.v = from.v;
    a.k_scale = from.k_scale;
    a.v_scale = from.v_scale;
    spoil(a);
    return message_of(code, [&] { attend(made, a, executor()); });
  };
  EXPECT_EQ(refusal(ErrorCode::kInvalidArgument, [](AttendArgs& a) { a.k_scale = {}; }),
            "k_scale: got 0 scales, want 1, or 2 for as many kv heads, since KV is fp8");
  EXPECT_EQ(refusal(ErrorCode::kTypeMismatch, [&](AttendArgs& a) { a.v_scale = fp8.v_scale; })
                .substr(0, 32),
            "v_scale: got memory of the host,");
}

TEST_F(CudaErrors, plan_objects_are_checked) {
  message_of(ErrorCode::kInvalidArgument, [&] { CudaPlan none(executor(), 0); });
  CudaPlan fresh(executor(), 64);
  EXPECT_EQ(fresh.capacity_bytes(), 64);
  message_of(ErrorCode::kInvalidArgument, [&] { fresh.upload(nullptr); });
  message_of(ErrorCode::kInvalidArgument, [&] { attend(fresh, args(), executor(), nullptr); });
  message_of(ErrorCode::kInvalidArgument, [&] { fresh.assign(Plan()); });
  EXPECT_NE(message_of(ErrorCode::kInvalidArgument, [&] { fresh.assign(runner_.plan()); })
                .find("the capacity"),
            std::string::npos);
  const Forest forest = discover(problem_.tables.batch());
  const Plan for_cpu = plan(forest, problem_.attention(), cpu_profile(1));
  message_of(ErrorCode::kTypeMismatch, [&] { plan_->assign(for_cpu); });
  message_of(ErrorCode::kTypeMismatch, [&] { attend(for_cpu, args(), executor()); });
  DeviceProfile larger = cuda_profile();
  larger.workers += 1;
  const Plan too_wide = plan(forest, problem_.attention(), larger);
  EXPECT_NE(message_of(ErrorCode::kInvalidArgument, [&] { plan_->assign(too_wide); })
                .find("thread blocks"),
            std::string::npos);
  attend(*plan_, args(), executor(), nullptr);  // what was assigned before is still there
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

TEST_F(CudaErrors, an_assigned_plan_must_be_uploaded) {
  plan_->assign(runner_.plan());
  EXPECT_NE(
      message_of(ErrorCode::kInvalidArgument, [&] { attend(*plan_, args(), executor(), nullptr); })
          .find("not uploaded"),
      std::string::npos);
}

TEST_F(CudaErrors, an_earlier_error_that_is_not_sticky_is_left_alone) {
  void* memory = nullptr;
  ASSERT_EQ(cudaMalloc(&memory, size_t{1} << 60), cudaErrorMemoryAllocation);
  attend(*plan_, args(), executor(), nullptr);
  EXPECT_EQ(cudaPeekAtLastError(), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaGetLastError(), cudaErrorMemoryAllocation);
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

}  // namespace
}  // namespace pando::cases
