#include "replay/kv_memory.h"

#include <unistd.h>

#include <cstring>
#include <utility>

#include "cases/rng.h"
#include "core/check.h"
#include "core/convert.h"

namespace pando::replay {
namespace {

cases::Buffer nan_buffer(double elements, const ReplayOptions& options) {
  const double bytes = elements * dtype_bytes(options.dtype);
  const double memory =
      static_cast<double>(sysconf(_SC_PHYS_PAGES)) * static_cast<double>(sysconf(_SC_PAGESIZE));
  constexpr double kGiB = 1 << 30;
  require(2 * bytes <= memory,
          "pool_tokens: got {}, {:.1f} GiB of K and V, want at most the machine's {:.1f} GiB",
          options.pool_tokens, 2 * bytes / kGiB, memory / kGiB);
  cases::Buffer buffer(static_cast<size_t>(bytes));
  std::memset(buffer.data(), 0xff, buffer.size());  // all ones is a NaN in every dtype
  return buffer;
}

double pool_elements(const ReplayOptions& options) {
  return static_cast<double>(options.num_pages()) * options.page_tokens * options.kv_heads *
         options.head_dim;
}

}  // namespace

RandomRows::RandomRows(DType dtype, int64_t row_elements, uint64_t seed)
    : element_bytes_(dtype_bytes(dtype)),
      row_bytes_(row_elements * element_bytes_),
      table_(kPlaces * element_bytes_ + row_bytes_),
      seed_(seed) {
  cases::Rng rng(seed);
  for (int64_t i = 0; i < kPlaces + row_elements; ++i) {
    store_element(table_.data(), i, dtype, rng.normal());
  }
}

void RandomRows::fill(void* row) {
  const auto place = static_cast<int64_t>(cases::mix_seed(seed_, next_++) % kPlaces);
  std::memcpy(row, table_.data() + place * element_bytes_, row_bytes_);
}

KvMemory::KvMemory(const ReplayOptions& options)
    : layout_(KvLayout::hnd(options.num_pages(), options.page_tokens, options.kv_heads,
                            options.head_dim)),
      element_bytes_(dtype_bytes(options.dtype)),
      k_(nan_buffer(pool_elements(options), options)),
      v_(nan_buffer(pool_elements(options), options)),
      rows_(options.dtype, options.head_dim, cases::mix_seed(options.seed, 1)),
      is_changed_(options.num_pages(), 0) {}

void KvMemory::mark(int32_t page) {
  if (is_changed_[page]) return;
  is_changed_[page] = 1;
  changed_pages_.push_back(page);
}

std::vector<int32_t> KvMemory::take_changed_pages() {
  for (const int32_t page : changed_pages_) is_changed_[page] = 0;
  return std::exchange(changed_pages_, {});
}

void KvMemory::fill(int32_t page, int32_t slot) {
  mark(page);
  for (int32_t head = 0; head < layout_.kv_heads; ++head) {
    const int64_t offset = layout_.offset(page, head, slot) * element_bytes_;
    rows_.fill(k_.data() + offset);
    rows_.fill(v_.data() + offset);
  }
}

void KvMemory::copy(const PageCopy& copy) {
  mark(copy.to);
  const int64_t bytes = copy.tokens * layout_.token_stride * element_bytes_;
  for (int32_t head = 0; head < layout_.kv_heads; ++head) {
    const int64_t from = layout_.offset(copy.from, head, 0) * element_bytes_;
    const int64_t to = layout_.offset(copy.to, head, 0) * element_bytes_;
    std::memcpy(k_.data() + to, k_.data() + from, bytes);
    std::memcpy(v_.data() + to, v_.data() + from, bytes);
  }
}

}  // namespace pando::replay
