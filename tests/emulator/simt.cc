#include "emulator/simt.h"

#include <fmt/format.h>
#include <sys/mman.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <stdexcept>

namespace pando::emulator {
namespace {

constexpr size_t kStackBytes = 256 * 1024;  // only what is touched takes memory
constexpr int kIdleRounds = 10000;          // in which threads did nothing but poll

Thread* running = nullptr;

void make_fiber(ucontext_t& context, std::byte* stack, ucontext_t* then, void (*enter)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStackBytes;
  context.uc_link = then;
  makecontext(&context, enter, 0);
}

size_t round_up(size_t value, size_t to) { return (value + to - 1) / to * to; }

}  // namespace

Thread& current() { return *running; }

Grid::Grid(int blocks, int threads, size_t shared_bytes, uint64_t seed) : random_(seed) {
  const size_t stacks = size_t(blocks) * threads * kStackBytes;
  shared_bytes = round_up(shared_bytes, 4096);
  memory_bytes_ = stacks + blocks * shared_bytes;
  void* const memory = mmap(nullptr, memory_bytes_, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::runtime_error("emulator: no memory for the stacks");
  memory_ = static_cast<std::byte*>(memory);
  for (int b = 0; b < blocks; ++b) {
    auto& block = *blocks_.emplace_back(std::make_unique<Block>());
    block.index = b;
    block.grid = this;
    block.shared = memory_ + stacks + b * shared_bytes;
    std::fill_n(block.shared, shared_bytes, std::byte{0xff});  // NaN until somebody writes
    block.warps.resize(threads / kWarpThreads);
    block.warpgroups.resize(threads / kWarpgroupThreads);
    for (int t = 0; t < threads; ++t) {
      auto& thread = *threads_.emplace_back(std::make_unique<Thread>());
      thread.index = t;
      thread.block = &block;
      make_fiber(thread.context, memory_ + (threads_.size() - 1) * kStackBytes, &scheduler_,
                 &Grid::enter);
    }
  }
  order_.resize(threads_.size() / kWarpThreads);
  std::iota(order_.begin(), order_.end(), size_t{0});
}

Grid::~Grid() { munmap(memory_, memory_bytes_); }

Block& Grid::in_cluster(const Block& of, uint32_t rank) {
  if (rank >= static_cast<uint32_t>(cluster_blocks())) {
    fail_thread("cluster: there is no such thread block");
  }
  return *blocks_[of.index / cluster_blocks() * cluster_blocks() + rank];
}

void Grid::enter() {
  Thread& thread = *running;
  Grid& grid = *thread.block->grid;
  try {
    (*grid.kernel_)();
  } catch (...) {
    if (!grid.error_) grid.error_ = std::current_exception();
  }
  thread.finished = true;
}

void switch_out(Thread& thread) { swapcontext(&thread.context, &thread.block->grid->scheduler_); }

/// Lets every thread that can run do so; returns whether any did more than poll.
bool Grid::run_round() {
  std::shuffle(order_.begin(), order_.end(), random_);
  bool progress = false;
  for (const size_t warp : order_) {
    for (int lane = 0; lane < kWarpThreads; ++lane) {
      Thread& thread = *threads_[warp * kWarpThreads + lane];
      if (thread.finished) continue;
      if (thread.ready != nullptr && !thread.ready(thread.ready_argument)) continue;
      progress |= !thread.polling;
      thread.ready = nullptr;
      thread.polling = false;
      running = &thread;
      swapcontext(&scheduler_, &thread.context);
      if (error_) return true;
    }
  }
  return progress;
}

/// Most land soon, some after many that were issued later.
void Grid::enqueue(std::function<void()> land) {
  copies_.push_back({std::move(land), draw(16) == 0 ? draw(200) : draw(4)});
}

/// Returns whether there were any.
bool Grid::land_copies() {
  const bool any = !copies_.empty();
  for (size_t i = 0; i < copies_.size();) {
    if (--copies_[i].rounds > 0) {
      ++i;
      continue;
    }
    copies_[i].land();
    copies_.erase(copies_.begin() + static_cast<std::ptrdiff_t>(i));
  }
  return any;
}

void Grid::run(const std::function<void()>& kernel) {
  kernel_ = &kernel;
  int idle = 0;
  const auto finished = [](const auto& thread) { return thread->finished; };
  while (!std::ranges::all_of(threads_, finished)) {
    ++round_;
    const bool progress = run_round();
    if (error_) std::rethrow_exception(error_);
    idle = land_copies() || progress ? 0 : idle + 1;
    if (idle > kIdleRounds) report_deadlock();
  }
  if (!copies_.empty()) {
    throw std::runtime_error("emulator: copies are on their way that nobody waited for");
  }
}

void Grid::report_deadlock() const {
  struct Waiting {
    int count = 0;
    const Thread* first = nullptr;
  };
  std::map<std::string, Waiting> waiting;
  for (const auto& thread : threads_) {
    if (thread->finished) continue;
    Waiting& w = waiting[thread->where];
    if (w.count++ == 0) w.first = thread.get();
  }
  std::string text = "emulator: all threads wait";
  for (const auto& [where, w] : waiting) {
    text += fmt::format(", {} in {}, the first of them thread {} of block {}", w.count, where,
                        w.first->index, w.first->block->index);
  }
  throw std::runtime_error(text);
}

void fail_thread(const std::string& what) {
  throw std::runtime_error(fmt::format("emulator: block {}, thread {}: {}", current().block->index,
                                       current().index, what));
}

void poll(const char* where) {
  Thread& thread = current();
  thread.where = where;
  thread.polling = true;
  switch_out(thread);
}

const uint64_t* exchange(uint32_t mask, const char* name, uint64_t value) {
  Thread& thread = current();
  auto& places = thread.block->warps[thread.warp()];
  auto place = std::ranges::find(places, mask, &Exchange::mask);
  if (place == places.end()) {
    places.reserve(kWarpThreads);  // others hold references
    if (places.size() == places.capacity()) fail_thread("too many different masks in one warp");
    place = places.insert(places.end(), Exchange{.mask = mask});
  }
  Exchange& e = *place;
  const uint32_t bit = uint32_t{1} << thread.lane();
  if ((mask & bit) == 0) fail_thread(fmt::format("{}: the mask lacks the calling lane", name));
  if (e.arrived == 0) e.name = name;
  if (std::string_view(e.name) != name) {
    fail_thread(fmt::format("{}: other lanes of the warp are in {}", name, e.name));
  }
  const uint64_t generation = e.generation;
  uint64_t* const values = e.values[generation % 2];
  values[thread.lane()] = value;
  e.arrived |= bit;
  if (e.arrived == mask) {
    e.arrived = 0;
    ++e.generation;
  }
  wait_until(name, [&] { return e.generation != generation; });
  return values;
}

}  // namespace pando::emulator
