#include "plan/schedule.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <numeric>

#include "core/check.h"

namespace pando::cuda {
namespace {

constexpr int64_t kMostSlots = int64_t{1} << 30;   ///< of a stream
constexpr int64_t kMostMerges = int64_t{1} << 22;  ///< so that the kernel's job numbers fit 32 bits
constexpr int64_t kWarpsAThreadBlock = 8;          ///< that merge

/// Where a run of `tokens` may start, so that most of its boxes are whole.
int32_t run_alignment(int32_t tokens) {
  if (tokens > 16) return kHalfTokens;
  return tokens > kGranule ? 2 * kGranule : kGranule;
}

int64_t round_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

}  // namespace

int32_t Scheduler::Problem::blocks() const {
  return static_cast<int32_t>(round_up(packed_rows(), kBlockRows) / kBlockRows);
}

void Scheduler::build(const Problem& p) {
  if (int64_t{p.blocks()} * p.kv_heads > kMostMerges) {
    fail(ErrorCode::kUnsupported,
         "batch: got {} packed rows at {} kv heads, the CUDA backend supports {} blocks of 64 rows",
         p.packed_rows(), p.kv_heads, kMostMerges);
  }
  chosen_ = &layouts_[0];
  for (int32_t i = 0; i < (p.blocks() > 1 ? 2 : 1); ++i) {
    make_layout(p, i + 1, layouts_[i]);
    weigh_steps(p, layouts_[i]);
    cut(p, layouts_[i]);
    if (layouts_[i].predicted_us < chosen_->predicted_us) chosen_ = &layouts_[i];
  }
  list_units(p);
  merges_.clear();
  merge_rows_.clear();
  sources_.clear();
  int64_t partial_rows = 0;
  for (int32_t block = 0; block < p.blocks(); ++block) {
    for (int32_t head = 0; head < p.kv_heads; ++head) end_block(p, block, head, partial_rows);
  }
  if (partial_rows > std::numeric_limits<int32_t>::max()) {
    fail(ErrorCode::kUnsupported, "batch: the plan needs more than 2^31 - 1 partial rows");
  }
  // Many rows are dealt to warps by fours instead.
  constexpr int64_t kJobsARow = 4;
  const int64_t jobs = static_cast<int64_t>(merge_rows_.size()) * kJobsARow;
  if (jobs > p.thread_blocks * kWarpsAThreadBlock) merge_rows_.clear();
  lay_out(p, partial_rows);
}

/// Appends what the list's rows see of a run to a stream, and nothing that none of them sees: V of
/// such a token may be NaN. `slot` is the end of the stream so far.
void Scheduler::place_run(const Problem& p, const pando::Run& run, const List& list, int32_t stream,
                          int64_t& slot, Layout& out) {
  const int32_t first = list.block * kBlockRows;
  const int32_t present = std::min(list.blocks * kBlockRows, p.packed_rows() - first);
  const int32_t row_begin = std::max(0, run.row_begin * p.group - first);
  const int32_t row_end = std::min(present, run.row_end * p.group - first);
  // Of a stream for one block of two, only that block's rows come by.
  const int32_t low = list.blocks == 2 && stream == 2 ? kBlockRows : 0;
  const int32_t high = list.blocks == 2 && stream == 1 ? kBlockRows : present;
  const bool own = run.row_begin * p.group >= first && run.row_end * p.group <= first + present;
  const bool counts = run.row_begin * p.group >= first;
  VisibleRange all{0, std::numeric_limits<int32_t>::max()};
  seen_.clear();
  for (int32_t r = (first + row_begin) / p.group; r <= (first + row_end - 1) / p.group; ++r) {
    const PlanRow& row = p.order.rows[r];
    all.begin = std::max(all.begin, row.visible_begin);
    all.end = std::min(all.end, row.visible_end);
    const VisibleRange part{std::max(run.token_begin, row.visible_begin),
                            std::min(run.token_end, row.visible_end)};
    if (part.begin >= part.end) continue;
    if (!seen_.empty() && seen_.back().begin <= part.begin && part.begin <= seen_.back().end) {
      seen_.back().end = std::max(seen_.back().end, part.end);
    } else {
      seen_.push_back(part);
    }
  }
  std::ranges::sort(seen_, {}, &VisibleRange::begin);
  const auto add = [&](int32_t begin, int32_t end) {
    const bool plain = all.begin <= begin && end <= all.end;
    const bool full = plain && row_begin == low && row_end == high;
    slot = round_up(slot, run_alignment(end - begin));
    const auto index = static_cast<int32_t>(out.runs.size());
    out.runs.push_back({.slot_begin = static_cast<int32_t>(slot),
                        .token_begin = begin,
                        .token_end = end,
                        .page_offset = p.forest.page_indptr()[run.sequence],
                        .rows = static_cast<uint32_t>(row_begin | row_end << 8) |
                                (full ? Run::kFull : 0) | (plain ? Run::kPlain : 0),
                        .reserved = {}});
    const int64_t slot_end = slot + round_up(end - begin, kGranule);
    for (int64_t half = slot / kHalfTokens; half * kHalfTokens < slot_end; ++half) {
      if (list.begin[stream] + half == static_cast<int64_t>(out.halves.size())) {
        out.halves.push_back({static_cast<int32_t>(half * kHalfTokens), index, 0, 0});
        out.own.push_back(own);
      }
      ++out.halves.back().runs;
    }
    slot = slot_end;
    if (counts) out.kv_tokens += int64_t{end - begin} * p.kv_heads;
  };
  for (size_t i = 0; i < seen_.size();) {
    int32_t begin = seen_[i].begin;
    int32_t end = seen_[i].end;
    for (++i; i < seen_.size() && seen_[i].begin <= end; ++i) end = std::max(end, seen_[i].end);
    // A box of 8 tokens, or of a smaller page, must not cross a page: what comes before a multiple
    // of that is a run by itself.
    const int32_t box = std::min(kGranule, p.forest.page_tokens());
    if (const int32_t next = begin / box * box + box; begin % box != 0 && next < end) {
      add(begin, next);
      begin = next;
    }
    add(begin, end);
  }
}

/// Deals the runs to lists over `blocks_a_list` blocks. A run that only one block of a pair sees
/// goes to that block's stream.
void Scheduler::make_layout(const Problem& p, int32_t blocks_a_list, Layout& out) {
  out.runs.clear();
  out.halves.clear();
  out.own.clear();
  out.lists.clear();
  out.kv_tokens = 0;
  const int32_t blocks = p.blocks();
  const int32_t lists = (blocks + blocks_a_list - 1) / blocks_a_list;
  for (auto& stream : members_) {
    stream.resize(std::max(stream.size(), static_cast<size_t>(lists)));
    for (int32_t i = 0; i < lists; ++i) stream[i].clear();
  }
  for (int32_t i = 0; i < static_cast<int32_t>(p.runs.size()); ++i) {
    const int32_t first = p.runs[i].row_begin * p.group / kBlockRows;
    const int32_t last = (p.runs[i].row_end * p.group - 1) / kBlockRows;
    for (int32_t list = first / blocks_a_list; list <= last / blocks_a_list; ++list) {
      const int32_t base = list * blocks_a_list;
      const bool alone = blocks_a_list == 1 || base + 1 == blocks;
      const bool high = last > base;
      members_[alone || !high ? 1 : first <= base ? 0 : 2][list].push_back(i);
    }
  }
  for (int32_t i = 0; i < lists; ++i) {
    List list{};
    list.block = i * blocks_a_list;
    list.blocks = std::min(blocks_a_list, blocks - list.block);
    for (int32_t stream = 0; stream < 3; ++stream) {
      list.begin[stream] = static_cast<int32_t>(out.halves.size());
      int64_t slot = 0;
      for (const int32_t run : members_[stream][i]) {
        place_run(p, p.runs[run], list, stream, slot, out);
        if (slot <= kMostSlots) continue;
        fail(ErrorCode::kUnsupported,
             "batch: got {} tokens under one block of rows, the CUDA backend supports {}", slot,
             kMostSlots);
      }
      list.end[stream] = static_cast<int32_t>(out.halves.size());
    }
    const auto halves = [&](int32_t stream) { return list.end[stream] - list.begin[stream]; };
    list.whole_tiles = (halves(0) + 1) / 2;
    list.split_tiles = list.blocks == 2 ? std::max(halves(1), halves(2)) : (halves(1) + 1) / 2;
    if (list.steps() > 0) out.lists.push_back(list);
  }
}

/// Predicted time of each step, where one that must come from memory takes `own_factor` times as
/// long. Returns the time of all the others, and that of these in `own_us`.
double Scheduler::weigh(const Problem& p, double own_factor, double& own_us, Layout& out) {
  out.until_us.clear();
  own_us = 0;
  double other_us = 0;
  for (List& list : out.lists) {
    list.step_begin = static_cast<int32_t>(out.until_us.size());
    double until_us = 0;
    out.until_us.push_back(until_us);
    for (int32_t i = 0; i < list.steps(); ++i) {
      const int32_t split = i - list.whole_tiles;
      const bool own = split < 0          ? out.own[list.begin[0] + i * 2] != 0
                       : list.blocks == 2 ? true
                                          : out.own[list.begin[1] + split * 2] != 0;
      const double us = split < 0 ? p.cost.whole_tile_us : p.cost.split_tile_us;
      (own ? own_us : other_us) += us;
      until_us += own ? us * own_factor : us;
      out.until_us.push_back(until_us);
    }
  }
  return other_us;
}

/// Where memory is the bound of the whole, steps that must come from memory weigh more, so that the
/// shares are equal in the end.
void Scheduler::weigh_steps(const Problem& p, Layout& out) {
  double own_us = 0;
  const double other_us = weigh(p, 1, own_us, out);
  const auto token_bytes = static_cast<double>(p.token_head_bytes);
  int64_t steps = 0;
  for (const List& list : out.lists) steps += list.steps();
  const double memory_us = static_cast<double>(out.kv_tokens / std::max(1, p.kv_heads)) *
                           token_bytes / p.cost.memory_bytes_per_us;
  const double l2_us =
      static_cast<double>(steps) * kTileTokens * token_bytes / p.cost.l2_bytes_per_us;
  const double all_us = std::max(memory_us, l2_us) * p.thread_blocks;
  if (own_us > 0 && all_us > own_us + other_us) weigh(p, (all_us - other_us) / own_us, own_us, out);
}

/// Every list into `parts` parts of equal weight; the same parts of lists that read the same tokens
/// lie side by side, so that L2 serves them together. Returns the predicted time.
double Scheduler::cut_evenly(const Problem& p, int32_t parts, Layout& out) {
  out.pieces.clear();
  loads_.assign(p.thread_blocks, 0);
  for (int32_t part = 0; part < parts; ++part) {
    for (int32_t i = 0; i < static_cast<int32_t>(out.lists.size()); ++i) {
      const List& list = out.lists[i];
      const double* const until_us = out.until_us.data() + list.step_begin;
      // The number of steps whose middle lies before `us`.
      const auto steps_before = [&](double us) {
        int32_t low = 0, high = list.steps();
        while (low < high) {
          const int32_t step = std::midpoint(low, high);
          if (until_us[step] + until_us[step + 1] < 2 * us) {
            low = step + 1;
          } else {
            high = step;
          }
        }
        return low;
      };
      const double all_us = until_us[list.steps()];
      const int32_t begin = part == 0 ? 0 : steps_before(all_us * part / parts);
      const int32_t end =
          part + 1 == parts ? list.steps() : steps_before(all_us * (part + 1) / parts);
      if (begin < end) out.pieces.push_back({i, 0, begin, end, 0});
    }
  }
  const auto one_head = static_cast<int32_t>(out.pieces.size());
  int32_t thread_block = 0;
  for (int32_t head = 0; head < p.kv_heads; ++head) {
    for (int32_t i = 0; i < one_head; ++i) {
      Piece piece = out.pieces[i];
      piece.kv_head = head;
      piece.thread_block = thread_block;
      const double* const until_us = out.until_us.data() + out.lists[piece.list].step_begin;
      loads_[thread_block] += p.cost.unit_us + until_us[piece.end] - until_us[piece.begin];
      thread_block = thread_block + 1 == p.thread_blocks ? 0 : thread_block + 1;
      if (head == 0) {
        out.pieces[i] = piece;
      } else {
        out.pieces.push_back(piece);
      }
    }
  }
  const double merge_us = parts > 1 ? p.cost.merge_us + parts * p.cost.source_us : 0;
  return *std::ranges::max_element(loads_) + merge_us;
}

/// Cuts the lists, one after another, so that every thread block gets the same predicted time.
double Scheduler::cut_by_share(const Problem& p, Layout& out) {
  out.pieces.clear();
  double total_us = 0;
  for (const List& list : out.lists) {
    total_us += p.kv_heads * (out.until_us[list.step_begin + list.steps()] + p.cost.unit_us);
  }
  const double share_us = total_us / p.thread_blocks + p.cost.unit_us;
  double left_us = share_us;
  double most_us = 0;
  int32_t thread_block = 0;
  const auto next_thread_block = [&] {
    most_us = std::max(most_us, share_us - left_us);
    ++thread_block;
    left_us = std::min(left_us, 0.0) + share_us;
  };
  for (int32_t head = 0; head < p.kv_heads; ++head) {
    for (int32_t i = 0; i < static_cast<int32_t>(out.lists.size()); ++i) {
      const List& list = out.lists[i];
      const double* const until_us = out.until_us.data() + list.step_begin;
      for (int32_t begin = 0; begin < list.steps();) {
        const bool last = thread_block == p.thread_blocks - 1;
        int32_t end = begin;
        const double limit_us = left_us - p.cost.unit_us + until_us[begin];
        while (end < list.steps() &&
               (last || (until_us[end] + until_us[end + 1]) / 2 <= limit_us)) {
          ++end;
        }
        if (end > begin) {
          out.pieces.push_back({i, head, begin, end, thread_block});
          left_us -= p.cost.unit_us + until_us[end] - until_us[begin];
          begin = end;
        }
        if (begin < list.steps()) next_thread_block();
      }
      if (left_us < p.cost.unit_us && thread_block < p.thread_blocks - 1) next_thread_block();
    }
  }
  const auto lists = static_cast<double>(std::max<size_t>(1, out.lists.size())) * p.kv_heads;
  const double sources = static_cast<double>(out.pieces.size()) / lists;
  return std::max(most_us, share_us - left_us) + p.cost.merge_us + sources * p.cost.source_us;
}

/// The cut with the least predicted time.
void Scheduler::cut(const Problem& p, Layout& out) {
  const auto lists = static_cast<int32_t>(out.lists.size()) * p.kv_heads;
  int32_t longest = 1;
  for (const List& list : out.lists) longest = std::max(longest, list.steps());
  const int32_t most = std::min(longest, std::max(1, p.thread_blocks / std::max(1, lists)));
  const double by_share_us = cut_by_share(p, out);
  int32_t best_parts = 0;
  out.predicted_us = by_share_us;
  // Every number of parts up to 4, then three between each power of two and the next, then the
  // most.
  int32_t last_parts = 0;
  for (int32_t parts = 1; last_parts < most;
       parts +=
       std::max(1, static_cast<int32_t>(std::bit_floor(static_cast<uint32_t>(parts)) / 4))) {
    last_parts = std::min(parts, most);
    const double us = cut_evenly(p, last_parts, out);
    if (us > out.predicted_us) continue;
    out.predicted_us = us;
    best_parts = last_parts;
  }
  if (best_parts == 0) {
    cut_by_share(p, out);
  } else if (best_parts != last_parts) {
    cut_evenly(p, best_parts, out);
  }
}

/// The unit of a piece, but for the places of its results.
Unit Scheduler::make_unit(const Layout& layout, const Piece& piece) {
  const List& list = layout.lists[piece.list];
  Unit unit{};
  unit.block = list.block;
  unit.blocks = list.blocks;
  unit.kv_head = piece.kv_head;
  // Half of the thread blocks begin with what must come from memory, the others with what keeps the
  // tensor cores busy.
  unit.split_first = piece.thread_block % 2;
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
  std::array<int32_t, 2> begin{kBlockRows, kBlockRows};  // of the rows that it touches
  std::array<int32_t, 2> end{0, 0};
  const auto touch = [&](int32_t half_begin, int32_t half_end) {
    if (half_begin >= half_end) return;
    const Half& last = layout.halves[half_end - 1];
    for (int32_t r = layout.halves[half_begin].run_begin; r < last.run_begin + last.runs; ++r) {
      const auto row_begin = static_cast<int32_t>(layout.runs[r].rows & 255);
      const auto row_end = static_cast<int32_t>(layout.runs[r].rows >> 8 & 255);
      for (int32_t side = 0; side < list.blocks; ++side) {
        const int32_t from = std::max(row_begin - side * kBlockRows, 0);
        const int32_t to = std::min(row_end - side * kBlockRows, kBlockRows);
        if (from >= to) continue;
        begin[side] = std::min(begin[side], from);
        end[side] = std::max(end[side], to);
      }
    }
  };
  touch(unit.whole_begin, unit.whole_end);
  for (int32_t side = 0; side < 2; ++side) touch(unit.split_begin[side], unit.split_end[side]);
  for (int32_t side = 0; side < 2; ++side) {
    const bool touched = begin[side] < end[side];
    unit.ending[side] = {-1, touched ? begin[side] | static_cast<uint32_t>(end[side]) << 8 : 0, 0,
                         0};
  }
  return unit;
}

/// Units in the order of their thread blocks, and who touches which block.
void Scheduler::list_units(const Problem& p) {
  const size_t ends = static_cast<size_t>(p.blocks()) * p.kv_heads;
  touches_.resize(std::max(touches_.size(), ends));
  for (size_t i = 0; i < ends; ++i) touches_[i].clear();
  unit_begin_.assign(p.thread_blocks + 1, 0);
  for (const Piece& piece : chosen_->pieces) ++unit_begin_[piece.thread_block + 1];
  for (int32_t i = 0; i < p.thread_blocks; ++i) unit_begin_[i + 1] += unit_begin_[i];
  next_unit_.assign(unit_begin_.begin(), unit_begin_.end() - 1);
  units_.resize(chosen_->pieces.size());
  for (const Piece& piece : chosen_->pieces) {
    const int32_t index = next_unit_[piece.thread_block]++;
    const Unit& unit = units_[index] = make_unit(*chosen_, piece);
    for (int32_t side = 0; side < unit.blocks; ++side) {
      const auto touched = static_cast<int32_t>(unit.ending[side].touched);
      if (touched == 0) continue;
      touches_[static_cast<size_t>(unit.block + side) * p.kv_heads + piece.kv_head].push_back(
          {index, piece.thread_block, side, touched & 255, touched >> 8});
    }
  }
}

/// Says where the rows of one block at one kv head go: those that one unit alone touches to out,
/// the others to partials that are merged.
void Scheduler::end_block(const Problem& p, int32_t block, int32_t kv_head, int64_t& partial_rows) {
  const auto& touches = touches_[static_cast<size_t>(block) * p.kv_heads + kv_head];
  std::array<uint8_t, kBlockRows> readers{};  // of each row: none, one, more
  for (const Touch& t : touches) {
    for (int32_t r = t.begin; r < t.end; ++r) readers[r] = readers[r] == 0 ? 1 : 2;
  }
  uint64_t wanted = 0;
  for (int32_t r = 0; r < std::min(kBlockRows, p.packed_rows() - block * kBlockRows); ++r) {
    if (readers[r] != 1) wanted |= uint64_t{1} << r;
  }
  Merge merge{.block = block,
              .kv_head = kv_head,
              .source_begin = static_cast<int32_t>(sources_.size()),
              .sources = 0,
              .rows = {},
              .reserved = {}};
  for (const Touch& t : touches) {
    // The longest stretch of rows that nobody else touches.
    int32_t begin = t.begin, end = t.begin;
    for (int32_t r = t.begin; r < t.end; ++r) {
      int32_t stop = r;
      while (stop < t.end && readers[stop] == 1) ++stop;
      if (stop - r > end - begin) {
        begin = r;
        end = stop;
      }
      r = std::max(r, stop);
    }
    Ending& ending = units_[t.unit].ending[t.side];
    ending.direct = begin | static_cast<uint32_t>(end) << 8;
    if (end - begin == t.end - t.begin) continue;
    for (int32_t r = t.begin; r < t.end; ++r) {
      if (readers[r] == 1 && (r < begin || r >= end)) wanted |= uint64_t{1} << r;
    }
    ending.partial = static_cast<int32_t>(partial_rows);
    partial_rows += t.end - t.begin;
    sources_.push_back({.partial = ending.partial,
                        .rows = ending.touched,
                        .writer = t.thread_block * 2 + t.side,
                        .ticket = t.unit - unit_begin_[t.thread_block] + 1});
    ++merge.sources;
  }
  if (wanted == 0) return;
  for (uint32_t r = 0; r < kBlockRows; ++r) {
    if ((wanted >> r & 1) != 0) {
      merge_rows_.push_back(static_cast<MergeRow>(merges_.size()) << 8 | r);
    }
  }
  merge.rows[0] = static_cast<uint32_t>(wanted);
  merge.rows[1] = static_cast<uint32_t>(wanted >> 32);
  merges_.push_back(merge);
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
  header_.total_bytes = at;
}

Start Scheduler::make_start(const Problem& p, int32_t thread_block) const {
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
  start.end_at = at(header_.total_bytes);
  start.partial_rows = header_.partial_rows;
  start.merge_rows = header_.merge_rows;
  start.q_row = -1;
  for (int32_t u = start.unit_begin; u < start.unit_end; ++u) {
    start.tile_count += units_[u].whole_tiles + units_[u].split_tiles;
  }
  if (start.unit_begin == start.unit_end) return start;
  const Unit& unit = start.unit = units_[start.unit_begin];
  // As TileOrder in the kernel begins.
  const bool split = unit.whole_tiles == 0 || (unit.split_first != 0 && unit.split_tiles != 0);
  for (int32_t side = 0; side < 2; ++side) {
    const int32_t half = split ? unit.split_begin[side] : unit.whole_begin + side;
    const int32_t end = split ? unit.split_end[side] : unit.whole_end;
    if (half >= end) continue;
    start.half[side] = chosen_->halves[half];
    for (int32_t r = 0; r < std::min(start.half[side].runs, Start::kRuns); ++r) {
      start.runs[side][r] = chosen_->runs[start.half[side].run_begin + r];
    }
  }
  const auto& rows = p.order.rows;
  const int32_t first = unit.block * kBlockRows / p.group;
  const int32_t last = std::min(((unit.block + unit.blocks) * kBlockRows - 1) / p.group,
                                static_cast<int32_t>(rows.size()) - 1);
  start.q_row = rows[first].q_row;
  for (int32_t row = first; row <= last; ++row) {
    if (rows[row].q_row != rows[first].q_row + row - first) start.q_row = -1;
  }
  return start;
}

void Scheduler::write(const Problem& p, std::byte* to) const {
  static_assert(sizeof(Row) == sizeof(PlanRow));
  std::memset(to, 0, header_.total_bytes);
  std::memcpy(to, &header_, sizeof(header_));
  for (int32_t i = 0; i < p.thread_blocks; ++i) {
    const Start start = make_start(p, i);
    std::memcpy(to + ScheduleHeader::kStartsOffset + int64_t{sizeof(Start)} * i, &start,
                sizeof(start));
  }
  const auto copy = [to](int64_t offset, const auto& entries) {
    if (!entries.empty()) {
      std::memcpy(to + offset, entries.data(), entries.size() * sizeof(entries[0]));
    }
  };
  copy(header_.units_offset, units_);
  copy(header_.halves_offset, chosen_->halves);
  copy(header_.runs_offset, chosen_->runs);
  copy(header_.rows_offset, p.order.rows);
  copy(header_.merges_offset, merges_);
  copy(header_.sources_offset, sources_);
  copy(header_.merge_rows_offset, merge_rows_);
}

}  // namespace pando::cuda
