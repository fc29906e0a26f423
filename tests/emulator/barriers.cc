// Named barriers and mbarriers.
#include <fmt/format.h>

#include <bit>

#include "emulator/simt.h"

namespace pando::emulator {
namespace {

/// What the 64 bits of an mbarrier hold here.
struct Mbarrier {
  uint64_t phase : 1;
  uint64_t arrivals : 12;  ///< of each phase
  uint64_t pending : 13;
  int64_t bytes : 38;  ///< expected, less received

  static Mbarrier load(const uint64_t* from) { return std::bit_cast<Mbarrier>(*from); }
  void store(uint64_t* to) {
    if (pending == 0 && bytes == 0) {
      phase ^= 1;
      pending = arrivals;
    }
    *to = std::bit_cast<uint64_t>(*this);
  }
};
static_assert(sizeof(Mbarrier) == sizeof(uint64_t));

NamedBarrier& named(int barrier, int threads) {
  if (barrier < 0 || barrier >= 16) fail_thread("bar: there is no such barrier");
  NamedBarrier& b = current().block->barriers[barrier];
  if (b.arrived > 0 && b.threads != threads) {
    fail_thread(
        fmt::format("bar {}: others expect {} threads, this one {}", barrier, b.threads, threads));
  }
  b.threads = threads;
  if (++b.arrived == threads) {
    b.arrived = 0;
    ++b.generation;
  }
  return b;
}

}  // namespace

void barrier_arrive(int barrier, int threads) { named(barrier, threads); }

void barrier_sync(int barrier, int threads) {
  const uint64_t before = current().block->barriers.at(barrier).generation;
  const NamedBarrier& b = named(barrier, threads);
  wait_until("bar.sync", [&] { return b.generation != before; });
}

void cluster_arrive() { ++current().block->in_cluster_barrier; }

void cluster_wait() {
  const Block& block = *current().block;
  wait_until("barrier.cluster.wait", [&] {
    for (int rank = 0; rank < block.grid->cluster_blocks(); ++rank) {
      const Block& other = block.grid->in_cluster(block, rank);
      const auto threads = static_cast<int>(other.warps.size()) * kWarpThreads;
      if (other.in_cluster_barrier < threads) return false;
    }
    return true;
  });
}

uint32_t in_thread_block(const std::byte* mine, uint32_t rank) {
  return rank << 24 | static_cast<uint32_t>(mine - current().block->shared);
}

std::byte* in_cluster(uint32_t address) {
  Block& block = *current().block;
  return block.grid->in_cluster(block, address >> 24).shared + (address & 0xffffff);
}

void mbarrier_init(uint64_t* barrier, uint32_t arrivals) {
  *barrier = std::bit_cast<uint64_t>(
      Mbarrier{.phase = 0, .arrivals = arrivals, .pending = arrivals, .bytes = 0});
}

void mbarrier_arrive(uint64_t* barrier, int64_t expected_bytes) {
  Mbarrier b = Mbarrier::load(barrier);
  if (b.pending == 0) fail_thread("mbarrier: more arrivals than it was initialised for");
  b.bytes += expected_bytes;
  --b.pending;
  b.store(barrier);
}

void mbarrier_receive(uint64_t* barrier, int64_t bytes) {
  Mbarrier b = Mbarrier::load(barrier);
  b.bytes -= bytes;
  b.store(barrier);
}

void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
  wait_until("mbarrier.try_wait", [&] { return Mbarrier::load(barrier).phase != parity; });
}

}  // namespace pando::emulator
