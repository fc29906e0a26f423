// Calls that overlap: on two streams, with a plan object each, of one executor or of two.
#include <memory>

#include "cases/device_case.h"
#include "cuda/device_test.h"

namespace pando::cases {
namespace {

class CudaStreams : public DeviceTest {
 protected:
  void expect_same_bits_on_two_streams(CudaExecutor& a, CudaExecutor& b) {
    const Case first = device_case(prefix_shape(40, 1500, 61));
    const Case second = device_case(tree_shape({1, 4, 64}, {700, 300, 40}));
    const Output want_first = runner_.attend(first, {});
    const Plan plan_first = Plan::from_bytes(runner_.plan().bytes());
    const Output want_second = runner_.attend(second, {});
    const Plan plan_second = Plan::from_bytes(runner_.plan().bytes());
    const DeviceCase inputs_first(first), inputs_second(second);
    DeviceRun run_first(first, inputs_first, plan_first, a, false, true);
    DeviceRun run_second(second, inputs_second, plan_second, b, false, true);
    const DeviceStream stream_first, stream_second;
    run_first.upload(stream_first);
    run_second.upload(stream_second);
    for (int i = 0; i < 100; ++i) {
      run_first.attend(stream_first);
      run_second.attend(stream_second);
    }
    stream_first.synchronize();
    stream_second.synchronize();
    EXPECT_TRUE(same_bits(first, want_first, run_first.download()));
    EXPECT_TRUE(same_bits(second, want_second, run_second.download()));
  }

  Runner runner_{0, Backend::kCuda};
};

TEST_F(CudaStreams, one_executor_serves_two) {
  CudaExecutor executor;
  expect_same_bits_on_two_streams(executor, executor);
}

TEST_F(CudaStreams, two_executors_serve_two) {
  CudaExecutor a, b;
  expect_same_bits_on_two_streams(a, b);
}

TEST_F(CudaStreams, a_plan_object_takes_one_plan_after_another_without_waiting) {
  const Case problem = device_case(prefix_shape(40, 1500, 61));
  const Output want = runner_.attend(problem, {});
  const DeviceCase inputs(problem);
  CudaExecutor executor;
  DeviceRun run(problem, inputs, runner_.plan(), executor, false, true);
  const DeviceStream stream;
  for (int i = 0; i < 100; ++i) {  // assign waits for the copy before, not for the kernel
    run.upload(stream);
    run.attend(stream);
  }
  stream.synchronize();
  EXPECT_TRUE(same_bits(problem, want, run.download()));
}

}  // namespace
}  // namespace pando::cases
