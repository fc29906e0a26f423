#include "plan/schedule_check.h"

#include <cstring>
#include <span>

#include "plan/schedule_format.h"

namespace pando::cuda {
namespace {

/// The sections of a schedule in the bytes of a plan.
struct Sections {
  ScheduleHeader header;
  std::span<const int32_t> cta_begin;
  std::span<const Unit> units;
  std::span<const Run> runs;
  std::span<const Merge> merges;
  std::span<const Row> rows;
};

template <class Entry>
bool take(std::span<const std::byte> bytes, int64_t offset, int64_t count,
          std::span<const Entry>& section) {
  const auto size = static_cast<int64_t>(bytes.size());
  if (count < 0 || offset < 0 || offset % ScheduleHeader::kAlignment != 0 || offset > size ||
      count * static_cast<int64_t>(sizeof(Entry)) > size - offset) {
    return false;
  }
  section = {reinterpret_cast<const Entry*>(bytes.data() + offset), static_cast<size_t>(count)};
  return true;
}

bool take_all(std::span<const std::byte> bytes, Sections& s) {
  if (bytes.size() < sizeof(ScheduleHeader)) return false;
  std::memcpy(&s.header, bytes.data(), sizeof(s.header));
  const ScheduleHeader& h = s.header;
  return h.total_bytes == static_cast<int64_t>(bytes.size()) && h.thread_blocks >= 1 &&
         take(bytes, ScheduleHeader::kCtaBeginOffset, int64_t{h.thread_blocks} + 1, s.cta_begin) &&
         take(bytes, h.units_offset, h.units, s.units) &&
         take(bytes, h.runs_offset, h.runs, s.runs) &&
         take(bytes, h.merges_offset, h.merges, s.merges) &&
         take(bytes, h.rows_offset, h.rows, s.rows);
}

bool within(int64_t begin, int64_t end, int64_t limit) {
  return 0 <= begin && begin <= end && end <= limit;
}

bool ending_is_sane(const Ending& ending, const ScheduleHeader& h) {
  return ending.sources == 1 ||
         (ending.sources > 1 &&
          within(ending.partial, int64_t{ending.partial} + kBlockRows, h.partial_rows));
}

}  // namespace

bool schedule_is_sane(const Plan& plan) {
  const PlanHeader& h = plan.header();
  Sections s;
  if (!take_all(plan.schedule(), s)) return false;
  const int64_t packed_rows = int64_t{h.rows} * plan.group();
  const int64_t blocks = (packed_rows + kBlockRows - 1) / kBlockRows;
  if (s.header.packed_rows != packed_rows || s.header.rows != h.rows ||
      s.header.partial_rows != h.partial_rows || s.header.units != h.units ||
      s.header.thread_blocks != h.workers) {
    return false;
  }
  if (s.cta_begin.front() != 0 || s.cta_begin.back() != h.units) return false;
  for (int32_t i = 0; i < h.workers; ++i) {
    if (s.cta_begin[i] > s.cta_begin[i + 1]) return false;
  }
  for (const Unit& unit : s.units) {
    if ((unit.blocks != 1 && unit.blocks != 2) ||
        !within(unit.block, int64_t{unit.block} + unit.blocks, blocks) ||
        !within(unit.kv_head, int64_t{unit.kv_head} + 1, h.kv_heads) || unit.slot_begin < 0 ||
        unit.slot_begin >= unit.slot_end || unit.run_begin == unit.run_end ||
        !within(unit.run_begin, unit.run_end, s.header.runs)) {
      return false;
    }
    for (int32_t half = 0; half < unit.blocks; ++half) {
      if (!ending_is_sane(unit.ending[half], s.header)) return false;
    }
  }
  for (const Run& run : s.runs) {
    const int64_t last_page = run.page_offset + int64_t{run.token_end - 1} / h.page_tokens;
    if (run.slot_begin < 0 || run.token_begin < 0 || run.token_begin >= run.token_end ||
        run.page_offset < 0 || last_page >= h.page_table_len) {
      return false;
    }
  }
  for (const Merge& merge : s.merges) {
    if (!within(merge.block, int64_t{merge.block} + 1, blocks) ||
        !within(merge.kv_head, int64_t{merge.kv_head} + 1, h.kv_heads) || merge.sources < 0 ||
        !within(merge.first, merge.first + int64_t{merge.sources} * kBlockRows, h.partial_rows)) {
      return false;
    }
  }
  for (const Row& row : s.rows) {
    if (!within(row.q_row, int64_t{row.q_row} + 1, h.rows)) return false;
  }
  return true;
}

}  // namespace pando::cuda
