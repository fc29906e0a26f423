#include "emulator/tma.h"

#include <array>
#include <cstring>

#include "emulator/simt.h"

namespace pando::emulator {
namespace {

constexpr int kAlignment = 128;  // of the place in shared memory
constexpr int kChunkBytes = 16;

struct Box {
  CUtensorMap map;
  std::array<int32_t, 5> at;
  std::byte* shared;
  uint32_t to;  ///< in shared memory

  int32_t row_bytes() const { return map.box[0] * map.element_bytes; }
  /// Copies and returns the number of bytes.
  int64_t land() const {
    uint32_t row = 0;
    std::array<int32_t, 5> i{};
    for (i[4] = 0; i[4] < map.box[4]; ++i[4]) {
      for (i[3] = 0; i[3] < map.box[3]; ++i[3]) {
        for (i[2] = 0; i[2] < map.box[2]; ++i[2]) {
          for (i[1] = 0; i[1] < map.box[1]; ++i[1]) copy_row(i, to + row++ * row_bytes());
        }
      }
    }
    return int64_t{row} * row_bytes();
  }

 private:
  void copy_row(const std::array<int32_t, 5>& i, uint32_t address) const {
    bool inside = at[0] == 0;
    int64_t offset = 0;
    for (int d = 1; d < 5; ++d) {
      const int64_t place = int64_t{at[d]} + i[d];
      inside &= place >= 0 && place < map.sizes[d];
      offset += place * map.stride_bytes[d - 1];
    }
    for (int chunk = 0; chunk < row_bytes(); chunk += kChunkBytes) {
      const uint32_t a = address + chunk;
      std::byte* const there = shared + (map.swizzled ? a ^ (a >> 7 & 7) << 4 : a);
      if (inside) {
        std::memcpy(there, static_cast<const std::byte*>(map.data) + offset + chunk, kChunkBytes);
      } else {
        std::memset(there, 0, kChunkBytes);
      }
    }
  }
};

}  // namespace

void copy_box(void* to, const CUtensorMap& map, const int32_t (&coords)[5], uint64_t* barrier) {
  Block& block = *current().block;
  const auto place = static_cast<uint32_t>(static_cast<std::byte*>(to) - block.shared);
  if (place % kAlignment != 0) fail_thread("cp.async.bulk.tensor: the place in shared memory");
  const Box box{map, {coords[0], coords[1], coords[2], coords[3], coords[4]}, block.shared, place};
  if (box.row_bytes() % kChunkBytes != 0 || (map.swizzled && box.row_bytes() != 128)) {
    fail_thread("cp.async.bulk.tensor: the width of the box");
  }
  block.grid->enqueue([box, barrier] { mbarrier_receive(barrier, box.land()); });
}

}  // namespace pando::emulator
