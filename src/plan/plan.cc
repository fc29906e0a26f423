#include "pando/plan.h"

#include <algorithm>
#include <cstring>

#include "core/check.h"
#include "core/convert.h"
#include "core/mask.h"
#include "plan/check_args.h"
#include "plan/schedule_check.h"

namespace pando {
namespace {

constexpr PlanHeader kEmptyHeader;

template <class Entry>
std::span<const Entry> section(std::span<const std::byte> bytes, int64_t offset, int32_t count) {
  if (count == 0) return {};
  return {reinterpret_cast<const Entry*>(bytes.data() + offset), static_cast<size_t>(count)};
}

/// A section must lie behind the header, inside the buffer, at an aligned offset.
template <class Entry>
bool fits(int64_t offset, int32_t count, int64_t total) {
  return count >= 0 && offset >= static_cast<int64_t>(sizeof(PlanHeader)) && offset % 8 == 0 &&
         offset <= total && int64_t{count} * static_cast<int64_t>(sizeof(Entry)) <= total - offset;
}

bool sections_fit(const PlanHeader& h) {
  return fits<PlanRow>(h.rows_offset, h.rows, h.total_bytes) &&
         fits<WorkItem>(h.items_offset, h.items, h.total_bytes) &&
         fits<MergeGroup>(h.merges_offset, h.merges, h.total_bytes) &&
         fits<int32_t>(h.sources_offset, h.sources, h.total_bytes) &&
         fits<Decision>(h.decisions_offset, h.decisions, h.total_bytes) &&
         h.schedule_offset >= static_cast<int64_t>(sizeof(PlanHeader)) &&
         h.schedule_offset % 64 == 0 && h.schedule_offset <= h.total_bytes &&
         h.schedule_bytes >= 0 && h.schedule_bytes <= h.total_bytes - h.schedule_offset;
}

/// So that no number of bytes, and no sum or product of some, overflows.
constexpr int64_t kMostBytes = int64_t{1} << 60;

bool heads_are_sane(const PlanHeader& h) {
  return h.kv_heads > 0 && h.q_heads > 0 && h.q_heads % h.kv_heads == 0 && h.head_dim > 0 &&
         h.workers > 0 && h.row_tile > 0 && h.kv_tile > 0 && h.page_tokens > 0 &&
         h.page_table_len >= 0 && h.partial_slots >= 0 && h.partial_rows >= 0 && h.units >= 0 &&
         h.partials_bytes >= 0 && h.scratch_bytes >= 0 && h.soft_cap >= 0 && h.tree_rows >= 0 &&
         h.partials_bytes <= kMostBytes && h.scratch_bytes <= kMostBytes / h.workers &&
         is_query_dtype(h.dtype) && (h.kv_dtype == h.dtype || h.kv_dtype == DType::kE4M3) &&
         (h.backend == Backend::kCpu || h.backend == Backend::kCuda) &&
         std::ranges::find(h.device, '\0') != h.device.end();
}

/// So that no difference of two overflows.
bool cost_is_sane(const PlanCost& c) {
  return std::min({c.kv_bytes, c.unshared_kv_bytes, c.io_bytes, c.partial_bytes, c.flops,
                   c.padded_flops, c.unshared_padded_flops}) >= 0;
}

/// Every index in the lists points into the plan, so that a backend can follow it blindly.
bool lists_are_sane(const Plan& plan) {
  const PlanHeader& h = plan.header();
  const int64_t packed_rows = int64_t{h.rows} * plan.group();
  const auto rows_ok = [&](int32_t begin, int32_t end) {
    return 0 <= begin && begin < end && end <= packed_rows;
  };
  for (const WorkItem& item : plan.items()) {
    const int64_t rows = int64_t{item.packed_end} - item.packed_begin;
    if (!rows_ok(item.packed_begin, item.packed_end) || rows > h.row_tile) return false;
    if (item.token_begin < 0 || item.token_begin >= item.token_end) return false;
    const int64_t last_page = (item.token_end - 1) / h.page_tokens;
    if (item.page_offset < 0 || item.page_offset >= h.page_table_len - last_page) return false;
    if (item.partial < -1 || (item.partial >= 0 && item.partial + rows > h.partial_slots)) {
      return false;
    }
  }
  for (const MergeGroup& group : plan.merges()) {
    if (!rows_ok(group.packed_begin, group.packed_end)) return false;
    if (group.source_begin < 0 || group.source_begin > group.source_end ||
        group.source_end > h.sources) {
      return false;
    }
    for (int32_t s = group.source_begin; s < group.source_end; ++s) {
      const int64_t slot = plan.sources()[s];
      if (slot < 0 || slot + group.packed_end - group.packed_begin > h.partial_slots) return false;
    }
  }
  for (const PlanRow& row : plan.rows()) {
    if (row.q_row < 0 || row.q_row >= h.rows) return false;
    if (row.visible_begin > row.tree_begin || row.tree_begin > row.visible_end) return false;
    if (row.visible_end - int64_t{row.tree_begin} > kMostTreeRows) return false;
    if (row.tree_mask != 0 && h.tree_rows == 0) return false;
  }
  return h.backend == Backend::kCpu ? h.schedule_bytes == 0 : cuda::schedule_is_sane(plan);
}

}  // namespace

const PlanHeader& Plan::header() const {
  if (blocks_.empty()) return kEmptyHeader;
  return *reinterpret_cast<const PlanHeader*>(blocks_.data());
}

std::span<const std::byte> Plan::bytes() const {
  return {reinterpret_cast<const std::byte*>(blocks_.data()), blocks_.size() * sizeof(Block)};
}

std::span<const PlanRow> Plan::rows() const {
  return section<PlanRow>(bytes(), header().rows_offset, header().rows);
}
std::span<const WorkItem> Plan::items() const {
  return section<WorkItem>(bytes(), header().items_offset, header().items);
}
std::span<const MergeGroup> Plan::merges() const {
  return section<MergeGroup>(bytes(), header().merges_offset, header().merges);
}
std::span<const int32_t> Plan::sources() const {
  return section<int32_t>(bytes(), header().sources_offset, header().sources);
}
std::span<const Decision> Plan::decisions() const {
  return section<Decision>(bytes(), header().decisions_offset, header().decisions);
}

std::span<const std::byte> Plan::schedule() const {
  return bytes().subspan(header().schedule_offset, header().schedule_bytes);
}

int64_t Plan::workspace_bytes() const { return pando::workspace_bytes(header()); }

Plan Plan::from_bytes(std::span<const std::byte> bytes) {
  require(bytes.size() >= sizeof(PlanHeader), "bytes: got {} bytes, want a plan of {} or more",
          bytes.size(), sizeof(PlanHeader));
  PlanHeader header;
  std::memcpy(&header, bytes.data(), sizeof(header));
  require(header.magic == PlanHeader::kMagic, "bytes: got magic {:#x}, want {:#x}: not a plan",
          header.magic, PlanHeader::kMagic);
  require(header.version == PlanHeader::kVersion, "bytes: got a plan of version {}, want {}",
          header.version, PlanHeader::kVersion);
  require(
      header.total_bytes == static_cast<int64_t>(bytes.size()) && bytes.size() % sizeof(Block) == 0,
      "bytes: got {} bytes, want the {} that the plan's header states", bytes.size(),
      header.total_bytes);
  require(sections_fit(header) && heads_are_sane(header) && cost_is_sane(header.cost),
          "bytes: a section or a size in the header is out of range");
  Plan plan;
  plan.blocks_.resize(bytes.size() / sizeof(Block));
  std::memcpy(static_cast<void*>(plan.blocks_.data()), bytes.data(), bytes.size());
  require(lists_are_sane(plan), "bytes: an index in the work list is out of range");
  return plan;
}

}  // namespace pando
