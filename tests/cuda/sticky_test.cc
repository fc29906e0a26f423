// A CUDA error from elsewhere is reported with its name, not swallowed.
#include <cuda_runtime_api.h>

#include "cases/device_case.h"
#include "cuda/device_test.h"
#include "cuda/trap.h"
#include "support/message_of.h"

namespace pando::cases {
namespace {

using CudaSticky = DeviceTest;

TEST_F(CudaSticky, an_error_of_another_kernel_is_reported_by_name) {
  Runner runner(0, Backend::kCuda);
  const Case problem = device_case(prefix_shape(6, 64, 20));
  runner.attend(problem, {});
  const DeviceCase inputs(problem);
  DeviceRun run(problem, inputs, runner.plan(), runner.cuda().executor, false, true);
  run.upload(runner.cuda().stream);
  pando::testing::launch_trap();
  const cudaError_t status = cudaDeviceSynchronize();
  ASSERT_NE(status, cudaSuccess);
  const std::string message =
      pando::testing::message_of(ErrorCode::kDevice, [&] { run.attend(runner.cuda().stream); });
  EXPECT_NE(message.find(cudaGetErrorName(status)), std::string::npos) << message;
  EXPECT_EQ(cudaPeekAtLastError(), status);
}

}  // namespace
}  // namespace pando::cases
