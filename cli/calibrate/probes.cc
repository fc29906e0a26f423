#include "calibrate/probes.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <span>
#include <utility>

#include "cases/shapes_table.h"
#include "core/check.h"
#include "plan/schedule.h"

namespace pando::calibrate {
namespace {

constexpr int32_t kPairsAHead = 4;  ///< thread blocks that read the same tokens, from L2
constexpr int32_t kGroup = 8;
constexpr int32_t kUnitTiles = 24;   ///< that are dealt to 1 to 6 units
constexpr int32_t kMergedTiles = 6;  ///< of each thread block, whatever is merged
constexpr int32_t kSharers = 4;
constexpr int32_t kSourcesAtHand = 64;

Probe plan_probe(Constant constant, int32_t thread_blocks, int32_t kv_heads, int32_t sequences,
                 int32_t tiles, int32_t group = kGroup) {
  return {.constant = constant,
          .thread_blocks = thread_blocks,
          .kv_heads = kv_heads,
          .group = group,
          .sequences = sequences,
          .tokens = tiles * cuda::kTileTokens};
}

/// One list over two blocks of rows for each thread block; four of them read the same tokens, so
/// that memory is not what they wait for.
Probe whole_tiles(Constant constant, int32_t multiprocessors, int32_t tiles, int32_t units = 1) {
  const int32_t heads = std::max(1, multiprocessors / kPairsAHead);
  const int32_t rows = kPairsAHead * 2 * cuda::kBlockRows;
  return plan_probe(constant, heads * kPairsAHead, heads * units, rows / kGroup, tiles);
}

/// One list over one block of rows for each of so few thread blocks that memory keeps up.
Probe split_tiles(Constant constant, int32_t multiprocessors, int32_t tiles) {
  const int32_t heads = std::max(1, multiprocessors / kPairsAHead);
  return plan_probe(constant, heads, heads, cuda::kBlockRows / kGroup, tiles);
}

/// The same for a block of rows of sequences that share nothing, `group` rows and `tokens` each: as
/// many runs lie in a half as it has room for.
Probe many_runs(int32_t multiprocessors, int32_t group, int32_t tokens) {
  const int32_t heads = std::max(1, multiprocessors / kPairsAHead);
  Probe probe = plan_probe(Constant::kRun, heads, heads, cuda::kBlockRows / group, 0, group);
  probe.tokens = tokens;
  probe.apart = true;
  return probe;
}

/// The same tiles in the same number of thread blocks, whose partials are merged `sources` by
/// `sources`. 16 rows a head: no warp merges two.
Probe merged(Constant constant, int32_t thread_blocks, int32_t sources) {
  return plan_probe(constant, thread_blocks, thread_blocks / sources, 4, kMergedTiles * sources, 4);
}

Probe reads(Constant constant, int32_t multiprocessors, int32_t passes, int32_t sharers) {
  Probe probe{.constant = constant};
  probe.thread_blocks = 2 * multiprocessors / sharers * sharers;
  probe.passes = passes;
  probe.sharers = sharers;
  return probe;
}

/// Of a tile whose halves have so many runs, those beyond the first of the fuller one.
int32_t more_runs(int32_t one, int32_t other) { return std::max({1, one, other}) - 1; }

}  // namespace

std::string Probe::text() const {
  if (!is_plan()) {
    return fmt::format("{}: {} passes, {} thread blocks on the same bytes", name_of(constant),
                       passes, sharers);
  }
  return fmt::format("{}: {} thread blocks, {} kv heads, {} rows, {} tokens{}", name_of(constant),
                     thread_blocks, kv_heads, sequences * group, tokens,
                     apart ? fmt::format(" for each {}", group) : "");
}

std::vector<Probe> probes(int32_t multiprocessors) {
  std::vector<Probe> all;
  for (const int32_t tiles : {8, 16, 24, 32, 48, 64}) {
    all.push_back(whole_tiles(Constant::kWholeTile, multiprocessors, tiles));
  }
  for (const int32_t tiles : {8, 16, 24, 32, 48, 64}) {
    all.push_back(split_tiles(Constant::kSplitTile, multiprocessors, tiles));
  }
  for (const auto& [group, tokens] : {std::pair{1, 8}, {2, 16}, {8, 64}, {1, 16}, {4, 64}}) {
    all.push_back(many_runs(multiprocessors, group, tokens));
  }
  for (const int32_t units : {1, 2, 3, 4, 6}) {
    all.push_back(whole_tiles(Constant::kUnit, multiprocessors, kUnitTiles / units, units));
  }
  // Numbers with so many divisors that all probes have the same number of thread blocks.
  const int32_t merging = multiprocessors >= 96 ? 96 : multiprocessors >= 48 ? 48 : 0;
  const auto add_merged = [&](Constant constant, std::initializer_list<int32_t> sources) {
    for (const int32_t count : sources) {
      if (count <= merging) all.push_back(merged(constant, merging, count));
    }
  };
  // Not 2: lists in two parts have no partials.
  add_merged(Constant::kMerge, {1, 3, 4, 6, 8, 12, 16});
  add_merged(Constant::kTurn, {8, 12, 16, 24, 32, 48});
  if (merging > kSourcesAtHand) add_merged(Constant::kLookup, {16, 24, 32, 48, 96});
  for (const int32_t tiles : {1, 2, 3}) {
    all.push_back(whole_tiles(Constant::kLaunch, multiprocessors, tiles));
    all.push_back(split_tiles(Constant::kLaunch, multiprocessors, tiles));
  }
  for (const int32_t tiles : {16, 24, 32, 48, 64}) {
    all.push_back(plan_probe(Constant::kMemory, multiprocessors, multiprocessors, 4, tiles, 4));
  }
  for (const int32_t passes : {8, 16, 32, 64}) {
    all.push_back(reads(Constant::kCache, multiprocessors, passes, 1));
  }
  for (const int32_t passes : {4, 8, 16, 32}) {
    all.push_back(reads(Constant::kL2, multiprocessors, passes, kSharers));
  }
  return all;
}

cases::Case case_of(const Probe& probe) {
  const cases::Shape shape{
      .name = probe.text(),
      .q_heads = probe.kv_heads * probe.group,
      .kv_heads = probe.kv_heads,
      .nodes = {1, probe.sequences},
      .tokens = {probe.apart ? 0 : probe.tokens, probe.apart ? probe.tokens : 0}};
  return cases::shape_tables(shape, DType::kBF16);
}

Plan plan_of(const Probe& probe, const cases::Case& problem, const DeviceProfile& base) {
  DeviceProfile profile = base;
  profile.workers = probe.thread_blocks;
  // Lists are cut for all thread blocks, whatever it costs to merge them.
  for (const Constant c : {Constant::kMerge, Constant::kTurn, Constant::kLookup}) {
    field_of(profile, c) = 0;
  }
  profile.partial_row_us = 0;
  return plan(discover(problem.tables.batch()), problem.attention(), profile,
              {.sharing = Sharing::kAll});
}

Counts counts_of(const Plan& plan, const ScheduleCost& cost) {
  const std::span<const std::byte> bytes = plan.schedule();
  cuda::ScheduleHeader header;
  require(bytes.size() >= sizeof(header), "plan: got one without a schedule, want one for CUDA");
  std::memcpy(&header, bytes.data(), sizeof(header));
  const auto read = [&](auto& into, int64_t offset, int32_t index) {
    std::memcpy(&into, bytes.data() + offset + int64_t{sizeof(into)} * index, sizeof(into));
  };
  const auto runs_of = [&](int32_t half, int32_t end) {
    cuda::Half from{};
    if (half < end) read(from, header.halves_offset, half);
    return from.runs;
  };
  Counts longest{};
  double longest_us = -1;
  for (int32_t i = 0; i < header.thread_blocks; ++i) {
    cuda::Start start;
    read(start, cuda::ScheduleHeader::kStartsOffset, i);
    Counts counts{};
    for (int32_t u = start.unit_begin; u < start.unit_end; ++u) {
      cuda::Unit unit;
      read(unit, header.units_offset, u);
      count_of(counts, Constant::kUnit) += 1;
      count_of(counts, Constant::kWholeTile) += unit.whole_tiles;
      count_of(counts, Constant::kSplitTile) += unit.split_tiles;
      for (int32_t i = 0; i < unit.whole_tiles; ++i) {
        const int32_t half = unit.whole_begin + 2 * i;
        count_of(counts, Constant::kRun) +=
            more_runs(runs_of(half, unit.whole_end), runs_of(half + 1, unit.whole_end));
      }
      for (int32_t i = 0; i < unit.split_tiles; ++i) {
        const int32_t at = i * unit.split_stride();
        count_of(counts, Constant::kRun) +=
            more_runs(runs_of(unit.split_begin[0] + at, unit.split_end[0]),
                      runs_of(unit.split_begin[1] + at, unit.split_end[1]));
      }
    }
    const double us = count_of(counts, Constant::kUnit) * cost.unit_us +
                      count_of(counts, Constant::kWholeTile) * cost.whole_tile_us +
                      count_of(counts, Constant::kSplitTile) * cost.split_tile_us +
                      count_of(counts, Constant::kRun) * cost.run_us;
    if (us <= longest_us) continue;
    longest_us = us;
    longest = counts;
  }
  int32_t sources = 0;
  for (int32_t i = 0; i < header.merges; ++i) {
    cuda::Merge merge;
    read(merge, header.merges_offset, i);
    sources = std::max(sources, merge.sources);
  }
  if (sources > 1) {
    count_of(longest, Constant::kMerge) = 1;
    count_of(longest, Constant::kTurn) = cuda::merge_turns(sources);
    count_of(longest, Constant::kLookup) = cuda::merge_lookups(sources);
  }
  count_of(longest, Constant::kLaunch) = 1;
  count_of(longest, Constant::kMemory) = static_cast<double>(plan.cost().kv_bytes);
  return longest;
}

Counts counts_of_reads(const Probe& probe) {
  Counts counts{};
  count_of(counts, probe.constant) = static_cast<double>(kReadBytes) * probe.passes * probe.sharers;
  return counts;
}

}  // namespace pando::calibrate
