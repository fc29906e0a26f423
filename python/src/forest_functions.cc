// pando_attn.forest_segments and visible_ranges: what a batch is made of, without a plan.
#include <vector>

#include "core/mask.h"
#include "pando/forest.h"
#include "registration.h"
#include "tensors.h"

namespace pando::python {
namespace {

/// int32s [segments, 3], parents before children: token_begin, token_end, and a sequence that holds
/// the whole segment.
ffi::Bytes forest_segments(ffi::TensorView q_indptr, ffi::TensorView kv_len,
                           ffi::TensorView page_indptr, ffi::TensorView page_ids,
                           int64_t page_tokens) {
  const Forest forest = discover({.q_indptr = host_ints("q_indptr", q_indptr),
                                  .kv_len = host_ints("kv_len", kv_len),
                                  .page_indptr = host_ints("page_indptr", page_indptr),
                                  .page_ids = host_ints("page_ids", page_ids),
                                  .page_tokens = narrow("page_tokens", page_tokens)});
  std::vector<int32_t> fields;
  for (const Segment& s : forest.segments()) {
    fields.insert(fields.end(), {s.token_begin, s.token_end, s.sequence});
  }
  return {reinterpret_cast<const char*>(fields.data()), fields.size() * sizeof(int32_t)};
}

/// Fills [q_rows, 2]: the positions [begin, end) that each row of a batch sees; core/mask.h.
void visible_ranges(ffi::TensorView q_indptr, ffi::TensorView kv_len, bool causal, int64_t window,
                    ffi::Optional<ffi::TensorView> visible, ffi::TensorView into) {
  const auto rows = host_ints("q_indptr", q_indptr);
  const auto lengths = host_ints("kv_len", kv_len);
  const auto out = writable_host_ints("into", into);
  require(rows.size() == lengths.size() + 1 && rows.front() == 0,
          "q_indptr: got {} numbers, want {} that start at 0", rows.size(), lengths.size() + 1);
  for (size_t b = 0; b < lengths.size(); ++b) {
    require(rows[b] <= rows[b + 1], "q_indptr: got {} after {}, want numbers that never decrease",
            rows[b + 1], rows[b]);
  }
  AttentionSpec spec{.causal = causal, .window = narrow("window", window)};
  require(spec.window >= 0, "window: got {}, want 0 (all) or more", window);
  if (visible.has_value()) {
    const auto ranges = host_ints("visible", *visible);
    require(ranges.size() == 2 * static_cast<size_t>(rows.back()) && spec.window == 0,
            "visible: got {} ranges and a window of {}, want one for each of the {} query rows and "
            "no window",
            ranges.size() / 2, spec.window, rows.back());
    spec.visible = {reinterpret_cast<const VisibleRange*>(ranges.data()), ranges.size() / 2};
  }
  require(out.size() == 2 * static_cast<size_t>(rows.back()), "into: got {} ints, want {}",
          out.size(), 2 * static_cast<int64_t>(rows.back()));
  for (size_t b = 0; b < lengths.size(); ++b) {
    const int32_t count = rows[b + 1] - rows[b];
    for (int32_t r = 0; r < count; ++r) {
      const VisibleRange seen = visible_range(spec, rows[b] + r, r, count, lengths[b]);
      out[2 * (rows[b] + r)] = seen.begin;
      out[2 * (rows[b] + r) + 1] = seen.end;
    }
  }
}

}  // namespace

void register_forest() {
  ffi::reflection::GlobalDef()
      .def("pando_attn.forest_segments", Guarded<&forest_segments>::call)
      .def("pando_attn.visible_ranges", Guarded<&visible_ranges>::call);
}

}  // namespace pando::python
