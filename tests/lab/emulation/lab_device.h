// The lab's kernels on the CPU; device memory is memory of the host.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <span>

#include "cases/buffer.h"

namespace pando::lab {

class DeviceBuffer {
 public:
  explicit DeviceBuffer(size_t bytes) : memory_(bytes) {}
  explicit DeviceBuffer(std::span<const std::byte> host) : memory_(host.size()) {
    std::copy(host.begin(), host.end(), memory_.data());
  }
  /// Memory of the device is written through const owners, too.
  std::byte* data() const { return const_cast<std::byte*>(memory_.data()); }
  size_t size() const { return memory_.size(); }
  void fill(int byte) { std::memset(memory_.data(), byte, memory_.size()); }
  void download(std::span<std::byte> to) const {
    std::copy_n(memory_.data(), to.size(), to.data());
  }

 private:
  cases::Buffer memory_;
};
using LabTest = ::testing::Test;

}  // namespace pando::lab
