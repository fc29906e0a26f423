// cp.async: copies of 16 bytes, and barriers that they arrive at.
#include <array>
#include <cstring>

#include "emulator/simt.h"

namespace pando::emulator {
namespace {

/// Arrives for all groups that have landed.
void settle(Thread& thread) {
  auto& groups = thread.copies;
  while (!groups.empty() && groups.front().left == 0 && groups.front().barrier != nullptr) {
    mbarrier_arrive(groups.front().barrier, 0);
    groups.pop_front();
  }
}

CopyGroup& open_group(Thread& thread) {
  auto& groups = thread.copies;
  if (groups.empty() || groups.back().barrier != nullptr) groups.emplace_back();
  return groups.back();
}

}  // namespace

void copy_16(void* to, const void* from) {
  using Chunk = std::array<std::byte, 16>;
  if (reinterpret_cast<uintptr_t>(to) % sizeof(Chunk) != 0 ||
      reinterpret_cast<uintptr_t>(from) % sizeof(Chunk) != 0) {
    fail_thread("cp.async: a place that is no multiple of 16 bytes");
  }
  Thread& thread = current();
  CopyGroup& group = open_group(thread);
  ++group.left;
  thread.block->grid->enqueue([&thread, &group, to, from] {
    std::memcpy(to, from, sizeof(Chunk));
    --group.left;
    settle(thread);
  });
}

void arrive_when_copied(uint64_t* barrier) {
  Thread& thread = current();
  open_group(thread).barrier = barrier;
  settle(thread);
}

void wait_copies() {
  const auto& groups = current().copies;
  wait_until("cp.async.wait_all", [&] {
    for (const CopyGroup& group : groups) {
      if (group.left > 0) return false;
    }
    return true;
  });
}

}  // namespace pando::emulator
