// Matrix products of a warpgroup: computed when they are issued, or a random time later when
// somebody waits for them.
#include "core/convert.h"
#include "emulator/simt.h"

namespace pando::emulator {
namespace {

constexpr int kRows = 64, kDepth = 16, kMostColumns = 256;
constexpr int kMostRounds = 40;  // that a product takes

/// A matrix descriptor with the 128-byte swizzle.
struct Operand {
  const std::byte* shared;
  uint32_t start, leading, stride;

  Operand(const std::byte* memory, uint64_t descriptor)
      : shared(memory),
        start((descriptor & 0x3fff) << 4),
        leading((descriptor >> 16 & 0x3fff) << 4),
        stride((descriptor >> 32 & 0x3fff) << 4) {
    if (descriptor >> 62 != 1) fail_thread("wgmma: a descriptor without the 128-byte swizzle");
  }
  uint16_t at(uint32_t offset) const {
    const uint32_t address = start + offset;
    return *reinterpret_cast<const uint16_t*>(shared + (address ^ (address >> 7 & 7) << 4));
  }
  /// Row `i` of a K-major operand, element `k`.
  uint16_t k_major(int i, int k) const { return at(i / 8 * stride + i % 8 * 128 + k * 2); }
  /// Column `n` of an MN-major operand, element `k`.
  uint16_t mn_major(int n, int k) const {
    return at(n / 64 * leading + k / 8 * stride + k % 8 * 128 + n % 64 * 2);
  }
};

void compute(const Product& p, const std::byte* shared) {
  const auto number = [&](uint16_t bits) {
    return p.fp16 ? f16_to_float(bits) : bf16_to_float(bits);
  };
  float a[kRows][kDepth], b[kDepth][kMostColumns], c[kRows][kMostColumns] = {};
  if (p.threads[0].a == nullptr) {
    const Operand operand(shared, p.a);
    for (int i = 0; i < kRows; ++i) {
      for (int k = 0; k < kDepth; ++k) a[i][k] = number(operand.k_major(i, k));
    }
  } else {
    for (int t = 0; t < kWarpgroupThreads; ++t) {
      const int row = t / 32 * 16 + t % 32 / 4;
      const int k = t % 4 * 2;
      for (int j = 0; j < 4; ++j) {
        for (int e = 0; e < 2; ++e) {
          a[row + j % 2 * 8][k + j / 2 * 8 + e] =
              number(static_cast<uint16_t>(p.threads[t].a[j] >> 16 * e));
        }
      }
    }
  }
  const Operand operand(shared, p.b);
  for (int n = 0; n < p.columns; ++n) {
    for (int k = 0; k < kDepth; ++k) {
      b[k][n] = number(p.transposed ? operand.mn_major(n, k) : operand.k_major(n, k));
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int k = 0; k < kDepth; ++k) {
      for (int n = 0; n < p.columns; ++n) c[i][n] += a[i][k] * b[k][n];
    }
  }
  for (int t = 0; t < kWarpgroupThreads; ++t) {
    for (int j = 0; j < p.columns / 2; ++j) {
      const int row = t / 32 * 16 + t % 32 / 4 + j / 2 % 2 * 8;
      const int column = j / 4 * 8 + t % 4 * 2 + j % 2;
      float& d = p.threads[t].d[j];
      d = (p.accumulate ? d : 0) + c[row][column];
    }
  }
}

void compute_first(Warpgroup& group, const std::byte* shared) {
  compute(group.products.front(), shared);
  group.products.pop_front();
  ++group.computed;
}

Warpgroup& group_of(const Thread& thread) {
  return thread.block->warpgroups[thread.index / kWarpgroupThreads];
}

}  // namespace

void issue_product(const Product& product, Product::Operands operands) {
  Thread& thread = current();
  Warpgroup& group = group_of(thread);
  const int64_t place = thread.issued++ - group.computed;
  if (place == static_cast<int64_t>(group.products.size())) group.products.push_back(product);
  Product& p = group.products[place];
  if (p.a != product.a || p.b != product.b || p.columns != product.columns ||
      p.accumulate != product.accumulate || p.transposed != product.transposed) {
    fail_thread("wgmma: the threads of the warpgroup disagree");
  }
  p.threads[thread.index % kWarpgroupThreads] = operands;
  if (++p.arrived < kWarpgroupThreads) return;
  Grid& grid = *thread.block->grid;
  p.not_before = grid.round() + grid.draw(kMostRounds);
  // The device may be as early as this.
  if (grid.draw(4) != 0) return;
  for (int64_t i = 0; i <= place; ++i) compute_first(group, thread.block->shared);
}

void commit_products() {
  Thread& thread = current();
  thread.groups.push_back(thread.issued);
}

void wait_products(int pending) {
  Thread& thread = current();
  Warpgroup& group = group_of(thread);
  if (static_cast<int>(thread.groups.size()) <= pending) return;
  const int64_t until = thread.groups[thread.groups.size() - 1 - pending];
  thread.groups.erase(thread.groups.begin(), thread.groups.end() - pending);
  while (group.computed < until) {
    wait_until("wgmma.wait_group", [&] {
      if (group.computed >= until) return true;
      const Product& next = group.products.front();
      return next.arrived == kWarpgroupThreads && thread.block->grid->round() >= next.not_before;
    });
    if (group.computed < until) compute_first(group, thread.block->shared);
  }
}

}  // namespace pando::emulator
