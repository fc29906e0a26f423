#include "plan/schedule.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstring>
#include <limits>

#include "core/check.h"
#include "plan/block_rows.h"
#include "plan/describe_tile.h"
#include "plan/scratch.h"

namespace pando::cuda {
namespace {

constexpr int64_t kMostBlocks = kMostMerges / 16;  ///< at all kv heads

}  // namespace

int32_t Scheduler::Problem::blocks() const {
  return static_cast<int32_t>(round_up(packed_rows(), kBlockRows) / kBlockRows);
}

void Scheduler::build(const Problem& p) {
  if (int64_t{p.blocks()} * p.kv_heads > kMostBlocks) {
    fail(ErrorCode::kUnsupported,
         "batch: got {} packed rows at {} kv heads, the CUDA backend supports {} blocks of 64 rows",
         p.packed_rows(), p.kv_heads, kMostBlocks);
  }
  for (const pando::Run& run : p.runs) {
    if (run.token_end <= kMostPositions) continue;
    fail(ErrorCode::kUnsupported, "kv_len[{}]: got {} or more, the CUDA backend supports {}",
         run.sequence, run.token_end, kMostPositions);
  }
  const bool invariant = p.cut_tokens > 0;
  chosen_ = &layouts_[0];
  if (invariant) build_invariant(p);
  for (int32_t i = 0; !invariant && i < (p.blocks() > 1 ? 2 : 1); ++i) {
    make_layout(p, i + 1, layouts_[i]);
    weigh_steps(p, layouts_[i]);
    cut(p, layouts_[i]);
    if (layouts_[i].predicted_us < chosen_->predicted_us) chosen_ = &layouts_[i];
    if (layouts_[i].is_narrow()) break;
  }
  list_units(p);
  merges_.clear();
  sources_.clear();
  exchanged_.assign(p.thread_blocks, 0);
  int64_t partial_rows = 0;
  for (int32_t block = 0; block < p.blocks(); ++block) {
    for (int32_t head = 0; head < p.kv_heads; ++head) {
      if (invariant) {
        end_block_in_cuts(p, block, head, partial_rows);
      } else {
        end_block(p, block, head, partial_rows);
      }
    }
  }
  if (static_cast<int64_t>(merges_.size()) > kMostMerges) {
    fail(ErrorCode::kUnsupported, "batch: the plan needs {} merges, the CUDA backend supports {}",
         merges_.size(), kMostMerges);
  }
  if (partial_rows > std::numeric_limits<int32_t>::max()) {
    fail(ErrorCode::kUnsupported, "batch: the plan needs more than 2^31 - 1 partial rows");
  }
  // By fours always where the order of sums must be the same.
  header_.merge_team_shift = invariant && !merges_.empty() ? -1 : find_merge_team(p);
  list_merge_rows();
  lay_out(p, partial_rows);
}

/// Rows of each of a list's blocks that see something of every stride-th of these halves.
std::array<uint64_t, 2> Scheduler::touched_rows(const Layout& layout, const List& list,
                                                int32_t half_begin, int32_t half_end,
                                                int32_t stride) {
  std::array<uint64_t, 2> rows{};
  if (half_begin >= half_end) return rows;
  const Half& last = layout.halves[half_begin + (half_end - 1 - half_begin) / stride * stride];
  for (int32_t r = layout.halves[half_begin].run_begin; r < last.run_begin + last.runs; ++r) {
    const auto row_begin = static_cast<int32_t>(layout.runs[r].rows & 255);
    const auto row_end = static_cast<int32_t>(layout.runs[r].rows >> 8 & 255);
    for (int32_t side = 0; side < list.blocks; ++side) {
      const int32_t first = side * kBlockRows;
      rows[side] |= rows_between(row_begin - first, row_end - first);
    }
  }
  return rows;
}

/// The unit of a piece, the `nth` of its thread block, but for the places of its results.
Unit Scheduler::make_unit(const Layout& layout, const Piece& piece, int32_t nth) {
  const List& list = layout.lists[piece.list];
  Unit unit{};
  unit.block = list.block;
  unit.blocks = list.blocks;
  unit.kv_head = piece.kv_head;
  // Of thread blocks with whole lists, half begin with what must come from memory, the others with
  // what keeps the tensor cores busy; neighbours, which read the same tokens, with the same. The
  // next list goes the other way round: what begins with memory takes 4 to 5 % longer. Where lists
  // are cut, other pieces are of one kind already.
  constexpr int32_t kNeighbours = 8;
  const bool whole_list = piece.begin == 0 && piece.end == list.steps();
  unit.split_first = whole_list ? (piece.thread_block / kNeighbours + nth) % 2 : 0;
  const int32_t whole_begin = std::min(piece.begin, list.whole_tiles);
  const int32_t whole_end = std::min(piece.end, list.whole_tiles);
  unit.whole_tiles = whole_end - whole_begin;
  unit.whole_begin = std::min(list.begin[0] + whole_begin * 2, list.end[0]);
  unit.whole_end = std::min(list.begin[0] + whole_end * 2, list.end[0]);
  const int32_t split_begin = std::max(piece.begin - list.whole_tiles, 0);
  const int32_t split_end = std::max(piece.end - list.whole_tiles, 0);
  unit.split_tiles = split_end - split_begin;
  const int32_t stride = unit.split_stride();
  for (int32_t side = 0; side < 2; ++side) {
    const int32_t stream = list.blocks == 2 ? side + 1 : 1;
    const int32_t base = list.begin[stream] + (list.blocks == 2 ? 0 : side);
    unit.split_begin[side] = std::min(base + split_begin * stride, list.end[stream]);
    unit.split_end[side] = std::min(base + split_end * stride, list.end[stream]);
  }
  std::array<uint64_t, 2> touched{};  // rows of each block
  const auto touch = [&](int32_t half_begin, int32_t half_end, int32_t stride) {
    const auto rows = touched_rows(layout, list, half_begin, half_end, stride);
    for (int32_t side = 0; side < list.blocks; ++side) touched[side] |= rows[side];
  };
  touch(unit.whole_begin, unit.whole_end, 1);
  for (int32_t side = 0; side < 2; ++side) {
    touch(unit.split_begin[side], unit.split_end[side], stride);
  }
  for (int32_t side = 0; side < 2; ++side) {
    unit.ending[side] = {-1, packed_range(touched[side]), 0, 0};
  }
  return unit;
}

/// Adds a piece; where it has too many rows for a narrow unit, and narrow ones can be cut from it
/// that are worth the change, those.
void Scheduler::add_pieces(const Problem& p, const Piece& piece) {
  const List& list = chosen_->lists[piece.list];
  const size_t first = pieces_.size();
  pieces_.push_back(piece);
  if (!p.narrow_units || list.blocks > 1) return;
  const auto give_up = [&] {
    pieces_.resize(first);
    pieces_.push_back(piece);
  };
  uint64_t rows = 0;  // of the last piece
  for (int32_t step = piece.begin; step < piece.end; ++step) {
    const int32_t half = list.begin[1] + step * 2;
    const uint64_t more = touched_rows(*chosen_, list, half, std::min(half + 2, list.end[1]), 1)[0];
    if (span_of(more) > kNarrowRows) return give_up();
    if (span_of(rows | more) <= kNarrowRows) {
      rows |= more;
      continue;
    }
    Piece next = pieces_.back();
    pieces_.back().end = next.begin = step;
    pieces_.push_back(next);
    rows = more;
  }
  const auto count = static_cast<int32_t>(pieces_.size() - first);
  if (count > 1 && piece.end - piece.begin < count * kLeastNarrowTiles) give_up();
}

/// Units in the order of their thread blocks, and who touches which block.
void Scheduler::list_units(const Problem& p) {
  const size_t ends = static_cast<size_t>(p.blocks()) * p.kv_heads;
  touches_.resize(std::max(touches_.size(), ends));
  for (size_t i = 0; i < ends; ++i) touches_[i].clear();
  unit_begin_.assign(p.thread_blocks + 1, 0);
  pieces_.clear();
  for (const Piece& piece : chosen_->pieces) add_pieces(p, piece);
  for (const Piece& piece : pieces_) ++unit_begin_[piece.thread_block + 1];
  for (int32_t i = 0; i < p.thread_blocks; ++i) unit_begin_[i + 1] += unit_begin_[i];
  next_unit_.assign(unit_begin_.begin(), unit_begin_.end() - 1);
  units_.resize(pieces_.size());
  for (const Piece& piece : pieces_) {
    const int32_t index = next_unit_[piece.thread_block]++;
    const Unit& unit = units_[index] =
        make_unit(*chosen_, piece, index - unit_begin_[piece.thread_block]);
    for (int32_t side = 0; side < unit.blocks; ++side) {
      const auto touched = static_cast<int32_t>(unit.ending[side].touched);
      if (touched == 0) continue;
      touches_[static_cast<size_t>(unit.block + side) * p.kv_heads + piece.kv_head].push_back(
          {index, piece.thread_block, side, touched & 255, touched >> 8, piece.cut});
    }
  }
}

void Scheduler::lay_out(const Problem& p, int64_t partial_rows) {
  const auto count = [](const auto& entries) { return static_cast<int32_t>(entries.size()); };
  header_.thread_blocks = p.thread_blocks;
  header_.packed_rows = p.packed_rows();
  header_.partial_rows = static_cast<int32_t>(partial_rows);
  header_.units = count(units_);
  header_.halves = count(chosen_->halves);
  header_.runs = count(chosen_->runs);
  header_.rows = count(p.order.rows);
  header_.merges = count(merges_);
  header_.sources = count(sources_);
  header_.merge_rows = count(merge_rows_);
  header_.tree_rows = p.order.has_holes ? header_.rows : 0;
  int64_t at = ScheduleHeader::kStartsOffset + int64_t{sizeof(Start)} * p.thread_blocks;
  const auto place = [&](int64_t& offset, const auto& entries) {
    offset = at;
    at += round_up(static_cast<int64_t>(entries.size() * sizeof(entries[0])),
                   ScheduleHeader::kAlignment);
  };
  place(header_.units_offset, units_);
  place(header_.halves_offset, chosen_->halves);
  place(header_.runs_offset, chosen_->runs);
  place(header_.rows_offset, p.order.rows);
  place(header_.merges_offset, merges_);
  place(header_.sources_offset, sources_);
  place(header_.merge_rows_offset, merge_rows_);
  header_.tree_rows_offset = 0;
  if (header_.tree_rows > 0) {
    header_.tree_rows_offset = at;
    at += round_up(int64_t{sizeof(TreeRow)} * header_.tree_rows, ScheduleHeader::kAlignment);
  }
  header_.total_bytes = at;
}

/// Whether a thread block has units, all of them narrow, and none ends in an exchange.
bool Scheduler::is_narrow(int32_t thread_block) const {
  const auto units = units_of(thread_block);
  return !units.empty() && std::ranges::all_of(units, &Unit::is_narrow) &&
         exchanged_[thread_block] == 0;
}

std::span<const Unit> Scheduler::units_of(int32_t thread_block) const {
  const int32_t begin = unit_begin_[thread_block];
  return std::span(units_).subspan(begin, unit_begin_[thread_block + 1] - begin);
}

/// All of a start but what follows from its units' tiles and rows.
Start Scheduler::make_start(int32_t thread_block) const {
  const auto at = [](int64_t offset) { return static_cast<int32_t>(offset / 16); };
  Start start{};
  start.unit_begin = unit_begin_[thread_block];
  start.unit_end = unit_begin_[thread_block + 1];
  start.merges = header_.merges;
  start.packed_rows = header_.packed_rows;
  start.units_at = at(header_.units_offset);
  start.halves_at = at(header_.halves_offset);
  start.runs_at = at(header_.runs_offset);
  start.rows_at = at(header_.rows_offset);
  start.merges_at = at(header_.merges_offset);
  start.sources_at = at(header_.sources_offset);
  start.merge_rows_at = at(header_.merge_rows_offset);
  start.tree_rows_at = at(header_.tree_rows_offset);
  start.partial_rows = header_.partial_rows;
  start.merge_rows = header_.merge_rows;
  start.merge_team_shift = header_.merge_team_shift;
  start.q_row = -1;
  for (int32_t u = start.unit_begin; u < start.unit_end; ++u) {
    start.tile_count += units_[u].whole_tiles + units_[u].split_tiles;
  }
  start.exchanged = exchanged_[thread_block];
  start.thread_block = thread_block;
  if (start.unit_begin < start.unit_end) start.unit = units_[start.unit_begin];
  const bool one_tile = has_one_tile(units_of(thread_block)) &&
                        (start.exchanged == 0 || has_one_tile(units_of(thread_block ^ 1)));
  start.one_tile = one_tile && header_.tree_rows == 0 ? 1 : 0;
  return start;
}

/// Writes the starts of all thread blocks. Where first units differ in their kv head alone, as most
/// do, their first tiles and rows are described once.
void Scheduler::write_starts(const Problem& p, std::byte* to) const {
  std::array<int32_t, 256> described;  // thread blocks, by a hash of their first unit
  described.fill(-1);
  const auto hash = [](const Unit& unit) {
    const auto all =
        static_cast<uint32_t>(unit.block * 31 + unit.whole_begin + unit.split_begin[0]);
    return all * 0x9e3779b1u >> 24;
  };
  const auto place = [to](int32_t thread_block) {
    return to + ScheduleHeader::kStartsOffset + int64_t{sizeof(Start)} * thread_block;
  };
  // What others have written to L2 is not written back while lines of K and V replace each other.
  // Of much more than L2 holds it costs more than it spares: 134 MB gain 5 % by it, 400 MB lose 4 %
  // (docs/benchmarks/h200-kernel-eviction-2026-11-29.txt).
  constexpr int64_t kMostCaches = 4;
  const bool evict_first = kv_tokens() * p.token_head_bytes <= kMostCaches * p.cache_bytes;
  for (int32_t i = 0; i < p.thread_blocks; ++i) {
    Start start = make_start(i);
    start.narrow = p.narrow_units && is_narrow(i) ? 1 : 0;
    start.evict_first = evict_first ? 1 : 0;
    if (start.unit_begin < start.unit_end) {
      const Unit& unit = start.unit;
      const int32_t tiles = unit.whole_tiles + unit.split_tiles;
      const bool has_all = tiles == start.tile_count || tiles >= Start::kTiles;
      int32_t& like = described[hash(unit)];
      if (has_all && like >= 0 && unit.alike(units_[unit_begin_[like]])) {
        std::memcpy(&start.q_row, place(like) + offsetof(Start, q_row), sizeof(start.q_row));
        std::memcpy(start.tiles, place(like) + offsetof(Start, tiles), sizeof(start.tiles));
        for (int32_t t = 0; t < std::min(tiles, Start::kTiles); ++t) {
          start.tiles[t].kv_head = unit.kv_head;
        }
      } else {
        describe_first_tiles(units_of(i), chosen_->halves, chosen_->runs,
                             PageShape::of(p.forest.page_tokens()), start.tiles);
        start.q_row = first_q_row(unit, std::span(p.order.rows), p.group);
        if (has_all) like = i;
      }
    }
    std::memcpy(place(i), &start, sizeof(start));
  }
}

void Scheduler::write(const Problem& p, std::byte* to) const {
  std::memset(to, 0, header_.total_bytes);
  std::memcpy(to, &header_, sizeof(header_));
  write_starts(p, to);
  const auto copy = [to](int64_t offset, const auto& entries) {
    if (!entries.empty()) {
      std::memcpy(to + offset, entries.data(), entries.size() * sizeof(entries[0]));
    }
  };
  copy(header_.units_offset, units_);
  copy(header_.halves_offset, chosen_->halves);
  copy(header_.runs_offset, chosen_->runs);
  auto* row = to + header_.rows_offset;
  for (const PlanRow& r : p.order.rows) {
    const Row plain{r.q_row, r.visible_begin, r.visible_end};
    std::memcpy(row, &plain, sizeof(plain));
    row += sizeof(plain);
  }
  for (int32_t i = 0; i < header_.tree_rows; ++i) {
    const PlanRow& r = p.order.rows[i];
    const TreeRow tree{r.tree_mask, r.tree_begin, 0};
    std::memcpy(to + header_.tree_rows_offset + int64_t{sizeof(TreeRow)} * i, &tree, sizeof(tree));
  }
  copy(header_.merges_offset, merges_);
  copy(header_.sources_offset, sources_);
  copy(header_.merge_rows_offset, merge_rows_);
}

}  // namespace pando::cuda
