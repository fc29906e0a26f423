// Threads of CUDA thread blocks on one thread of the host: what the shims of intrinsics and of PTX
// instructions are made of.
//
// Every CUDA thread is a fiber with a stack of its own. It runs until it must wait for others; then
// the next one runs. What is asynchronous on the device is late here: a copy lands at a random
// later time, and so is a product computed that somebody waits for. Code that relies on luck fails.
#pragma once

#include <ucontext.h>

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

namespace pando::emulator {

inline constexpr int kWarpThreads = 32;
inline constexpr int kWarpgroupThreads = 128;

/// Where lanes of a warp exchange values: each of `mask` brings one and sees all of them.
struct Exchange {
  uint32_t mask = 0;
  uint32_t arrived = 0;
  const char* name = "";
  uint64_t generation = 0;
  uint64_t values[2][kWarpThreads] = {};  ///< of this generation and of the one before
};

/// A named barrier of a thread block.
struct NamedBarrier {
  int arrived = 0;
  int threads = 0;
  uint64_t generation = 0;
};

/// One wgmma, as the 128 threads of a warpgroup issue it.
struct Product {
  struct Operands {
    float* d;
    const uint32_t* a;  ///< null: A is in shared memory
  };
  int columns = 0;
  bool transposed = false;
  bool fp16 = false;
  bool accumulate = false;
  uint64_t a = 0, b = 0;  ///< matrix descriptors
  std::vector<Operands> threads = std::vector<Operands>(kWarpgroupThreads);
  int arrived = 0;
  int64_t not_before = 0;  ///< the round of the grid in which it may be computed
};

struct Warpgroup {
  std::deque<Product> products;  ///< issued by some thread and not computed
  int64_t computed = 0;          ///< products before the first of these
};

/// A tile on its way from global to shared memory.
struct Copy {
  std::function<void()> land;
  int rounds;  ///< until it lands
};

/// Copies of one thread, at the end of which it arrives at a barrier.
struct CopyGroup {
  int left = 0;                 ///< that have not landed
  uint64_t* barrier = nullptr;  ///< null: there may be more of them
};

class Grid;

struct Block {
  int index = 0, index_y = 0;
  Grid* grid = nullptr;
  std::byte* shared = nullptr;  ///< aligned to 1024
  std::vector<std::vector<Exchange>> warps;
  std::vector<NamedBarrier> barriers = std::vector<NamedBarrier>(16);
  std::vector<Warpgroup> warpgroups;
  int in_cluster_barrier = 0;  ///< threads that have come to it
};

struct Thread {
  int index = 0;
  Block* block = nullptr;
  ucontext_t context = {};
  bool finished = false;
  bool (*ready)(void*) = nullptr;  ///< what it waits for; null: nothing
  void* ready_argument = nullptr;
  const char* where = "";        ///< the instruction it waits in
  bool polling = false;          ///< it waits in a loop of its own
  int64_t issued = 0;            ///< products
  std::vector<int64_t> groups;   ///< products issued when each group was committed
  std::deque<CopyGroup> copies;  ///< by cp.async: some have not landed

  int lane() const { return index % kWarpThreads; }
  int warp() const { return index / kWarpThreads; }
};

/// A launch.
class Grid {
 public:
  /// Other seeds give other orders of threads and other delays.
  Grid(int blocks, int threads, size_t shared_bytes, uint64_t seed);
  ~Grid();
  Grid(const Grid&) = delete;
  Grid& operator=(const Grid&) = delete;

  /// Runs `kernel` as every thread. Throws what a thread throws, and std::runtime_error where all
  /// of them wait for each other, naming what they wait in.
  void run(const std::function<void()>& kernel);

  /// Of a grid of one thread block: which of a larger grid it stands for.
  void place(int x, int y) {
    blocks_[0]->index = x;
    blocks_[0]->index_y = y;
  }
  /// Thread blocks of a cluster of two, one where their number is odd.
  Block& in_cluster(const Block& of, uint32_t rank);
  int cluster_blocks() const { return blocks() % 2 == 0 ? 2 : 1; }
  int blocks() const { return static_cast<int>(blocks_.size()); }
  void enqueue(std::function<void()> land);
  /// Random, below `limit`.
  int draw(int limit) { return static_cast<int>(random_() % static_cast<uint64_t>(limit)); }
  /// How often every thread has had its turn.
  int64_t round() const { return round_; }

 private:
  static void enter();
  bool run_round();
  bool land_copies();
  [[noreturn]] void report_deadlock() const;

  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<std::unique_ptr<Thread>> threads_;
  std::vector<size_t> order_;  ///< of warps
  std::deque<Copy> copies_;
  int64_t round_ = 0;
  std::mt19937_64 random_;
  std::byte* memory_ = nullptr;  ///< stacks, then shared memory
  size_t memory_bytes_ = 0;
  ucontext_t scheduler_ = {};
  const std::function<void()>* kernel_ = nullptr;
  std::exception_ptr error_;
  friend void switch_out(Thread&);
};

/// The thread that runs.
Thread& current();
/// Lets others run, until `current().ready` says that this one can go on.
void switch_out(Thread& thread);

/// Waits in instruction `where` until `ready()`.
template <class Ready>
void wait_until(const char* where, Ready&& ready) {
  if (ready()) return;
  Thread& thread = current();
  thread.where = where;
  thread.ready = [](void* r) { return (*static_cast<std::remove_reference_t<Ready>*>(r))(); };
  thread.ready_argument = &ready;
  switch_out(thread);
}

/// Fails the launch, naming thread block and thread.
[[noreturn]] void fail_thread(const std::string& what);

/// Lets others run; for loops that poll memory.
void poll(const char* where);
/// A collective of the lanes of `mask`: brings `value`, returns all values by lane.
const uint64_t* exchange(uint32_t mask, const char* name, uint64_t value);
/// Named barriers.
void barrier_arrive(int barrier, int threads);
void barrier_sync(int barrier, int threads);
/// The barrier of a cluster, which is met once. The address in the cluster of what `mine` is in
/// another of its thread blocks, and what lies there.
void cluster_arrive();
void cluster_wait();
uint32_t in_thread_block(const std::byte* mine, uint32_t rank);
std::byte* in_cluster(uint32_t address);
template <class T>
T* in_cluster(uint32_t address) {
  return reinterpret_cast<T*>(in_cluster(address));
}
/// mbarriers: 64 bits of shared memory.
void mbarrier_init(uint64_t* barrier, uint32_t arrivals);
void mbarrier_arrive(uint64_t* barrier, int64_t expected_bytes);
void mbarrier_receive(uint64_t* barrier, int64_t bytes);
void mbarrier_wait(uint64_t* barrier, uint32_t parity);
/// cp.async: starts a copy of 16 bytes to shared memory; arrives at an mbarrier when this thread's
/// copies so far have landed; waits until they have.
void copy_16(void* to, const void* from);
void arrive_when_copied(uint64_t* barrier);
void wait_copies();
/// wgmma: issues this thread's part of a product; closes a group; waits until at most `pending`
/// groups are not computed.
void issue_product(const Product& product, Product::Operands operands);
void commit_products();
void wait_products(int pending);

}  // namespace pando::emulator
