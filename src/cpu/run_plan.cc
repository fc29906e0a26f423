#include "cpu/run_plan.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <span>
#include <tuple>
#include <utility>

#include "cpu/matrix.h"

namespace pando {
namespace {

/// A counter on its own cache line.
struct alignas(64) Counter {
  std::atomic<int64_t> value{0};
};

/// Pieces that threads claim from both ends; a phase is over when all are finished.
struct Phase {
  int64_t total = 0;
  int64_t back_limit = 0;  // pieces that are claimed from the back at most
  Counter claimed;         // from the front, and above kBackShift from the back
  Counter finished;

  /// Calls run(begin, end) for ranges of pieces until all are claimed; batch_at(piece, step) says
  /// how many pieces a thread takes at once at `piece`, going by `step`.
  template <typename Batch, typename Work>
  void work(bool prefers_back, Batch&& batch_at, Work&& run) {
    int64_t seen = claimed.value.load(std::memory_order_relaxed);
    while (true) {
      const int64_t front = seen & (kOneFromBack - 1);
      const int64_t back = seen >> kBackShift;
      const int64_t left = total - front - back;
      if (left == 0) return;
      const bool from_back = prefers_back && back < back_limit;
      const int64_t wanted = from_back ? batch_at(total - back - 1, -1) : batch_at(front, 1);
      const int64_t count = std::min(wanted, left);
      if (!claimed.value.compare_exchange_weak(
              seen, seen + (from_back ? count << kBackShift : count), std::memory_order_relaxed)) {
        continue;
      }
      const int64_t begin = from_back ? total - back - count : front;
      run(begin, begin + count);
      finished.value.fetch_add(count, std::memory_order_release);
      seen = claimed.value.load(std::memory_order_relaxed);
    }
  }
  void wait() const {
    for (int spins = 0; finished.value.load(std::memory_order_acquire) < total; ++spins) {
      if (spins < 2000) {
        spin_pause();
      } else {
        std::this_thread::yield();
      }
    }
  }

  static constexpr int kBackShift = 40;
  static constexpr int64_t kOneFromBack = int64_t{1} << kBackShift;
  static constexpr int64_t kMostFromBack = int64_t{1} << 22;
};

struct Run {
  const Plan& plan;
  const AttendArgs& args;
  const KernelSet& kernels;
  CallView call;
  std::byte* scratch;
  int64_t few_row_units;  // taken at once
  int64_t merge_units;    // the same
  Phase items;
  Phase merges;
};

CallView make_call(const Plan& plan, const AttendArgs& args) {
  const PlanHeader& h = plan.header();
  const auto rows_strides = [&](int64_t row_stride, int64_t head_stride) {
    const bool contiguous = row_stride == 0 && head_stride == 0;
    return contiguous ? std::pair{int64_t{h.q_heads} * h.head_dim, int64_t{h.head_dim}}
                      : std::pair{row_stride, head_stride};
  };
  CallView call{};
  call.dtype = h.dtype;
  call.kv_dtype = h.kv_dtype;
  call.head_dim = h.head_dim;
  call.q_heads = h.q_heads;
  call.group = plan.group();
  call.scale = h.scale;
  call.soft_cap = h.soft_cap;
  call.k_scale = args.k_scale;
  call.v_scale = args.v_scale;
  call.trees = h.tree_rows > 0;
  call.sinks = args.sinks;
  call.rows = plan.rows().data();
  call.q = static_cast<const std::byte*>(args.q.data);
  std::tie(call.q_row_stride, call.q_head_stride) =
      rows_strides(args.q.row_stride, args.q.head_stride);
  call.k = static_cast<const std::byte*>(args.k);
  call.v = static_cast<const std::byte*>(args.v);
  call.page_stride = args.kv.page_stride;
  call.head_stride = args.kv.head_stride;
  call.token_stride = args.kv.token_stride;
  call.page_shift = std::countr_zero(static_cast<uint32_t>(h.page_tokens));
  call.out = static_cast<std::byte*>(args.out.data);
  std::tie(call.out_row_stride, call.out_head_stride) =
      rows_strides(args.out.row_stride, args.out.head_stride);
  call.lse = args.lse;
  call.partial_slots = h.partial_slots;
  call.partial_o = reinterpret_cast<float*>(args.workspace.data());
  call.partial_lse = call.partial_o + int64_t{h.kv_heads} * h.partial_slots * h.head_dim;
  return call;
}

Unit make_unit(const Run& run, int64_t index, std::byte* scratch) {
  const PlanHeader& h = run.plan.header();
  const WorkItem& item = run.plan.items()[index / h.kv_heads];
  Unit unit{};
  unit.call = &run.call;
  unit.page_ids = run.args.page_ids.data() + item.page_offset;
  unit.kv_head = static_cast<int32_t>(index % h.kv_heads);
  unit.scale = run.call.score_scale(unit.kv_head);
  unit.value_scale = run.call.value_scale(unit.kv_head);
  unit.token_begin = item.token_begin;
  unit.token_end = item.token_end;
  unit.packed_begin = item.packed_begin;
  unit.rows = item.packed_end - item.packed_begin;
  unit.partial = item.partial;
  unit.full = item.full != 0;
  unit.scratch = scratch;
  return unit;
}

/// Units of few rows that follow each other prefetch each other's tokens, so a thread takes
/// several; when there are plenty, the threads stay balanced to a few percent. Units of many rows
/// are long.
int64_t batch_of_units(const Run& run, int64_t unit, int64_t step) {
  const PlanHeader& h = run.plan.header();
  int64_t count = 0;
  for (; count < run.few_row_units; ++count, unit += step) {
    if (unit < 0 || unit >= run.items.total) break;
    const WorkItem& item = run.plan.items()[unit / h.kv_heads];
    if (item.packed_end - item.packed_begin > h.narrow_rows) break;
  }
  return std::max<int64_t>(count, 1);
}

/// Runs units [begin, end), each knowing the one that follows.
void run_units(const Run& run, int64_t begin, int64_t end, std::byte* scratch) {
  const int32_t narrow_rows = run.plan.header().narrow_rows;
  Unit unit = make_unit(run, begin, scratch);
  for (int64_t index = begin; index < end; ++index) {
    Unit next{};
    if (index + 1 < end) {
      next = make_unit(run, index + 1, scratch);
      unit.next = &next;
    }
    (unit.rows <= narrow_rows ? run.kernels.narrow : run.kernels.wide)(unit);
    unit = next;
  }
}

void run_merge(const Run& run, int64_t index, std::byte* scratch) {
  const PlanHeader& h = run.plan.header();
  const MergeGroup& group = run.plan.merges()[index / h.kv_heads];
  MergeUnit unit{};
  unit.call = &run.call;
  unit.sources = run.plan.sources().data() + group.source_begin;
  unit.source_count = group.source_end - group.source_begin;
  unit.kv_head = static_cast<int32_t>(index % h.kv_heads);
  unit.packed_begin = group.packed_begin;
  unit.packed_end = group.packed_end;
  unit.accumulator = reinterpret_cast<float*>(scratch);
  run.kernels.merge(unit);
}

void work(void* context, int worker) {
  Run& run = *static_cast<Run*>(context);
  std::byte* const scratch = run.scratch + worker * run.plan.header().scratch_bytes;
  if (run.items.total > 0) {
    const MatrixTiles tiles(run.kernels.tiles);
    run.items.work(
        worker % 2 == 1,
        [&](int64_t unit, int64_t step) { return batch_of_units(run, unit, step); },
        [&](int64_t begin, int64_t end) { run_units(run, begin, end, scratch); });
  }
  if (run.merges.total > 0) {
    run.items.wait();
    run.merges.work(
        false, [&](int64_t, int64_t) { return run.merge_units; },
        [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; ++i) run_merge(run, i, scratch);
        });
  }
}

/// How many of the units of few rows, at most half, take as long as the longest unit of the plan.
int64_t units_beside_longest(const PlanHeader& h, std::span<const WorkItem> items) {
  // Beside fewer rows than these, a token from memory takes as long as they do.
  constexpr int64_t kRowsOfAToken = 12;
  const auto cost = [](const WorkItem& item) {
    const int64_t rows = item.packed_end - item.packed_begin;
    return (item.token_end - item.token_begin) * (rows < kRowsOfAToken ? kRowsOfAToken : rows);
  };
  int64_t few_row_items = 0;
  int64_t longest = 0;
  for (const WorkItem& item : items) {
    if (item.packed_end - item.packed_begin <= h.narrow_rows) ++few_row_items;
    longest = std::max(longest, cost(item));
  }
  int64_t count = 0;
  for (int64_t i = h.items - few_row_items; longest > 0 && count < few_row_items / 2;
       ++i, ++count) {
    longest -= cost(items[i]) * h.kv_heads;
  }
  return count * h.kv_heads;
}

}  // namespace

void run_plan(const Plan& plan, const AttendArgs& args, const KernelSet& kernels,
              ThreadPool& pool) {
  const PlanHeader& h = plan.header();
  if (h.rows == 0) return;
  const int workers = std::min(pool.threads(), h.workers);
  const int64_t units = int64_t{h.items} * h.kv_heads;
  const int64_t merges = int64_t{h.merges} * h.kv_heads;
  Run run{.plan = plan,
          .args = args,
          .kernels = kernels,
          .call = make_call(plan, args),
          .scratch = args.workspace.data() + (h.partials_bytes + 63) / 64 * 64,
          .few_row_units = std::clamp<int64_t>(units / (32 * workers), 1, 16),
          // A merge takes about a microsecond; claiming several keeps the counter out of the way.
          .merge_units = std::clamp<int64_t>(merges / (8 * workers), 1, 16),
          .items = {},
          .merges = {}};
  run.items.total = units;
  run.merges.total = merges;
  // Shared segments come first and are bound by arithmetic, own tokens come last and are bound by
  // memory: taking them from both ends keeps both busy. The last small ones even out the threads,
  // which matters more when units are few.
  if (workers > 1 && units >= 32 * workers) {
    const int64_t beside = kernels.tiles ? 0 : units_beside_longest(h, plan.items());
    run.items.back_limit = std::min(units - std::max(units / 8, beside), Phase::kMostFromBack);
  }
  pool.run(workers, work, &run);
}

}  // namespace pando
