// The lab's kernels on a GPU.
#pragma once

#include "cases/device.h"
#include "cuda/device_test.h"

namespace pando::lab {

using cases::DeviceBuffer;
using LabTest = cases::DeviceTest;

}  // namespace pando::lab
