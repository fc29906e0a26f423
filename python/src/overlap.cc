#include "overlap.h"

#include <cstdint>
#include <cstdlib>

namespace pando::python {
namespace {

// Unsigned, since strides of anything may overflow.
uint64_t element_bytes(const ffi::TensorView& t) { return t.dtype().bits / 8; }

uint64_t step_bytes(const ffi::TensorView& t, int32_t i) {
  const auto stride = static_cast<uint64_t>(t.stride(i));
  return t.size(i) <= 1 ? 0 : (t.stride(i) < 0 ? 0 - stride : stride) * element_bytes(t);
}

uint64_t lowest_address(const ffi::TensorView& t) {
  uint64_t at = reinterpret_cast<uintptr_t>(t.data_ptr()) + t.byte_offset();
  for (int32_t i = 0; i < t.ndim(); ++i) {
    if (t.stride(i) < 0) at -= step_bytes(t, i) * static_cast<uint64_t>(t.size(i) - 1);
  }
  return at;
}

/// Bytes from the lowest address on, but for the dimensions whose steps are `period` or more.
uint64_t extent_bytes(const ffi::TensorView& t, uint64_t period) {
  uint64_t bytes = element_bytes(t);
  for (int32_t i = 0; i < t.ndim(); ++i) {
    const uint64_t step = step_bytes(t, i);
    if (step < period) bytes += step * static_cast<uint64_t>(t.size(i) - 1);
  }
  return bytes;
}

bool repeats(const ffi::TensorView& t, uint64_t period) {
  for (int32_t i = 0; i < t.ndim(); ++i) {
    const uint64_t step = step_bytes(t, i);
    if (step >= period && step % period != 0) return false;
  }
  return true;
}

bool apart(const ffi::TensorView& a, const ffi::TensorView& b) {
  if (a.numel() == 0 || b.numel() == 0) return true;
  const uint64_t from_a = lowest_address(a), from_b = lowest_address(b);
  if (from_a + extent_bytes(a, UINT64_MAX) <= from_b) return true;
  if (from_b + extent_bytes(b, UINT64_MAX) <= from_a) return true;
  for (int32_t i = 0; i < a.ndim(); ++i) {
    const uint64_t period = step_bytes(a, i);
    if (period == 0 || !repeats(a, period) || !repeats(b, period)) continue;
    const uint64_t behind = (from_a - from_b) % period;
    const uint64_t offset =
        from_b >= from_a ? (from_b - from_a) % period : (period - behind) % period;
    if (offset >= extent_bytes(a, period) && offset + extent_bytes(b, period) <= period)
      return true;
  }
  return false;
}

}  // namespace

void check_apart(std::string_view argument, const ffi::TensorView& written,
                 std::string_view other_name, const ffi::TensorView& other) {
  require(apart(written, other), "{}: got memory that overlaps {}, want memory of its own",
          argument, other_name);
}

}  // namespace pando::python
