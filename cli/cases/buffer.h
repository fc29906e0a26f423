// Uninitialised, 64-byte aligned memory for tensors: a case of gigabytes is filled once, not twice.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>

namespace pando::cases {

class Buffer {
 public:
  static constexpr size_t kAlignment = 64;

  Buffer() = default;
  explicit Buffer(size_t bytes)
      : data_(static_cast<std::byte*>(::operator new (bytes, std::align_val_t{kAlignment})),
              [](std::byte* data) { ::operator delete (data, std::align_val_t{kAlignment}); }),
        bytes_(bytes) {}
  Buffer(Buffer&&) = default;
  Buffer& operator=(Buffer&&) = default;

  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  size_t size() const { return bytes_; }
  /// A second owner of the same memory.
  Buffer share() const {
    Buffer other;
    other.data_ = data_;
    other.bytes_ = bytes_;
    return other;
  }
  std::span<std::byte> span() { return {data_.get(), bytes_}; }
  std::span<const std::byte> span() const { return {data_.get(), bytes_}; }

 private:
  std::shared_ptr<std::byte> data_;
  size_t bytes_ = 0;
};

}  // namespace pando::cases
