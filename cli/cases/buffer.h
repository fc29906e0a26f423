// Uninitialised, 64-byte aligned memory for tensors: a case of gigabytes is filled once, not twice.
#pragma once

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>
#include <span>

namespace pando::cases {

class Buffer {
 public:
  static constexpr size_t kAlignment = 64;
  static constexpr size_t kHugePage = size_t{2} << 20;

  Buffer() = default;
  /// Large buffers ask for huge pages, as a KV pool should: a walk over scattered pages of KV
  /// misses the TLB once for 2 MB instead of once for 4 KB.
  explicit Buffer(size_t bytes) : bytes_(bytes) {
    const std::align_val_t alignment{bytes < 2 * kHugePage ? kAlignment : kHugePage};
    data_ = {static_cast<std::byte*>(::operator new(bytes, alignment)),
             [alignment](std::byte* data) { ::operator delete(data, alignment); }};
#ifdef MADV_HUGEPAGE
    if (bytes >= 2 * kHugePage) madvise(data_.get(), bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  }
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
