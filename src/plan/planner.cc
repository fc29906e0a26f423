#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/check.h"
#include "core/convert.h"
#include "core/mask.h"
#include "pando/plan.h"
#include "plan/check_profile.h"
#include "plan/cost_model.h"
#include "plan/cuda_shapes.h"
#include "plan/runs.h"
#include "plan/schedule.h"
#include "plan/scratch.h"
#include "plan/splitter.h"
#include "plan/variants.h"
#include "plan/work_list.h"

namespace pando {
namespace {

constexpr int32_t kMostQHeads = 65536;  ///< so that no product of sizes overflows 64 bits

std::string dtype_text(DType dtype) {
  const std::string_view name = dtype_name(dtype);
  if (name != "unknown") return std::string(name);
  return fmt::format("code {}", static_cast<int32_t>(dtype));
}

void check_heads(const AttentionSpec& spec, Backend backend) {
  require(spec.kv_heads >= 1, "kv_heads: got {}, want 1 or more", spec.kv_heads);
  require(spec.q_heads >= 1 && spec.q_heads % spec.kv_heads == 0,
          "q_heads: got {}, want a positive multiple of kv_heads, {}", spec.q_heads, spec.kv_heads);
  if (spec.q_heads > kMostQHeads) {
    fail(ErrorCode::kUnsupported, "q_heads: got {}, supported are up to {}", spec.q_heads,
         kMostQHeads);
  }
  require(is_query_dtype(spec.dtype), "dtype: got {}, want fp32, bf16 or fp16",
          dtype_text(spec.dtype));
  const DType kv_dtype = spec.kv_dtype_or_default();
  require(kv_dtype == spec.dtype || kv_dtype == DType::kE4M3,
          "kv_dtype: got {}, want {}, as dtype, or fp8", dtype_text(kv_dtype),
          dtype_name(spec.dtype));
  if (kv_dtype == DType::kE4M3) check_variant(Variant::kFp8Kv, backend);
  require(spec.head_dim >= 1, "head_dim: got {}, want 1 or more", spec.head_dim);
  if (backend == Backend::kCpu) {
    if (spec.head_dim % 8 == 0 && spec.head_dim <= 256) return;
    fail(ErrorCode::kUnsupported,
         "head_dim: got {}, the CPU backend supports multiples of 8 up to 256", spec.head_dim);
  }
  if (!cuda_supports({spec.dtype, spec.head_dim})) {
    fail(ErrorCode::kUnsupported, "head_dim, dtype: got {} x {}, the CUDA backend supports {}",
         spec.head_dim, dtype_name(spec.dtype), cuda_shapes_text());
  }
}

/// One mask a row, with no bit for a query token that is not there.
void check_tree_mask(const AttentionSpec& spec, const Forest& forest) {
  require(spec.tree_mask.size() == static_cast<size_t>(forest.q_rows()),
          "tree_mask: got {} masks, want one for each of the {} query rows", spec.tree_mask.size(),
          forest.q_rows());
  require(spec.visible.empty(), "visible: got ranges beside tree_mask, want one of the two");
  require(spec.window == 0, "window: got {} beside tree_mask, want 0", spec.window);
  for (int32_t s = 0; s < forest.sequences(); ++s) {
    const int32_t first = forest.q_indptr()[s];
    const int32_t q_len = forest.q_indptr()[s + 1] - first;
    if (q_len > kMostTreeRows) {
      fail(ErrorCode::kUnsupported,
           "tree_mask: got {} query rows of sequence {}, supported are up to {}", q_len, s,
           kMostTreeRows);
    }
    for (int32_t r = 0; r < q_len; ++r) {
      const int32_t bits = std::bit_width(spec.tree_mask[first + r]);
      require(bits <= q_len,
              "tree_mask[{}]: got bit {}, want bits below {}, the query rows of sequence {}",
              first + r, bits - 1, q_len, s);
    }
  }
}

void check_spec(const AttentionSpec& spec, const Forest& forest, Backend backend) {
  check_heads(spec, backend);
  const float scale = spec.scale_or_default();
  // Kernels that flush subnormal numbers would multiply -inf by 0.
  require(scale == 0 || std::isnormal(scale),
          "scale: got {}, want 0 or a finite number of at least {} in size", scale,
          std::numeric_limits<float>::min());
  const bool divides = std::isnormal(spec.soft_cap) && std::isfinite(scale / spec.soft_cap);
  require(spec.soft_cap == 0 || (spec.soft_cap > 0 && divides),
          "soft_cap: got {}, want 0 (no cap) or a positive number that the scale can be divided by",
          spec.soft_cap);
  if (spec.soft_cap > 0) check_variant(Variant::kSoftCap, backend);
  if (!spec.tree_mask.empty()) {
    check_variant(Variant::kTreeMask, backend);
    check_tree_mask(spec, forest);
  }
  const bool fp8_on_cuda = backend == Backend::kCuda && spec.kv_dtype_or_default() == DType::kE4M3;
  if (fp8_on_cuda && !cuda_supports_fp8(spec.head_dim)) {
    fail(ErrorCode::kUnsupported,
         "head_dim: got {} with fp8 KV, of which the CUDA backend supports 64, 128", spec.head_dim);
  }
  require(spec.window >= 0, "window: got {}, want 0 (no window) or more", spec.window);
  if (!spec.visible.empty()) {
    require(spec.visible.size() == static_cast<size_t>(forest.q_rows()),
            "visible: got {} ranges, want one for each of the {} query rows", spec.visible.size(),
            forest.q_rows());
    require(spec.window == 0, "window: got {} beside visible, which replaces it; want 0",
            spec.window);
  }
  require(int64_t{forest.q_rows()} * spec.group() <= std::numeric_limits<int32_t>::max(),
          "q_heads: {} query rows x a group of {} exceed 2^31 - 1 packed rows", forest.q_rows(),
          spec.group());
}

void check_options(const PlanOptions& options, const DeviceProfile& profile, int32_t page_tokens) {
  require(options.sharing == Sharing::kAuto || options.sharing == Sharing::kNone ||
              options.sharing == Sharing::kAll,
          "sharing: got code {}, want auto (0), none (1) or all (2)",
          static_cast<int32_t>(options.sharing));
  if (!options.batch_invariant) return;
  const int32_t kv_tile = profile.backend == Backend::kCuda
                              ? std::max(profile.kv_tile, cuda::kTileTokens)
                              : profile.kv_tile;
  require(options.cut_tokens >= 1 && options.cut_tokens % kv_tile == 0 &&
              options.cut_tokens % page_tokens == 0,
          "cut_tokens: got {}, want a positive multiple of the kv tile, {}, and of page_tokens, {}",
          options.cut_tokens, kv_tile, page_tokens);
}

int64_t align(int64_t bytes, int64_t to) { return (bytes + to - 1) / to * to; }

}  // namespace

struct Planner::State {
  DeviceProfile profile;
  RowOrder order;
  SharingDecider sharing;
  std::vector<Decision> decisions;
  std::vector<int32_t> scratch;
  std::vector<Run> runs, unshared_runs;
  Splitter splitter, unshared_splitter;
  WorkList list;              ///< of plans for the CPU
  cuda::Scheduler scheduler;  ///< of plans for CUDA

  cuda::Scheduler::Problem schedule_problem(const Forest& forest, const AttentionSpec& spec,
                                            const PlanOptions& options,
                                            std::span<const Run> from) const {
    return {.forest = forest,
            .order = order,
            .runs = from,
            .kv_heads = spec.kv_heads,
            .group = spec.group(),
            .token_head_bytes = token_head_bytes(spec),
            .thread_blocks = profile.workers,
            .cost = cuda::cost_at(profile.schedule, spec.head_dim),
            .partial_row_us = profile.partial_row_us,
            .memory_bytes_per_us = profile.dram_bytes_per_us,
            .cache_bytes = profile.cache_bytes,
            .cut_tokens = options.batch_invariant ? options.cut_tokens : 0,
            .tokens_at_once = cuda::tokens_at_once(spec.head_dim),
            .narrow_units =
                cuda::has_narrow_units(spec.head_dim, spec.kv_dtype_or_default() == DType::kE4M3)};
  }
  void lay_out(const AttentionSpec& spec, PlanHeader& header) const;
  void write(const PlanHeader& header, const cuda::Scheduler::Problem& schedule,
             std::byte* bytes) const;
};

/// Section sizes and offsets.
void Planner::State::lay_out(const AttentionSpec& spec, PlanHeader& h) const {
  h.rows = static_cast<int32_t>(order.rows.size());
  h.items = static_cast<int32_t>(list.items().size());
  h.merges = static_cast<int32_t>(list.merges().size());
  h.sources = static_cast<int32_t>(list.sources().size());
  h.decisions = static_cast<int32_t>(decisions.size());
  int64_t at = align(sizeof(PlanHeader), 64);
  const auto place = [&at](int64_t& offset, int64_t bytes) {
    offset = at;
    at = align(at + bytes, 64);
  };
  place(h.rows_offset, h.rows * int64_t{sizeof(PlanRow)});
  place(h.items_offset, h.items * int64_t{sizeof(WorkItem)});
  place(h.merges_offset, h.merges * int64_t{sizeof(MergeGroup)});
  place(h.sources_offset, h.sources * int64_t{sizeof(int32_t)});
  place(h.decisions_offset, h.decisions * int64_t{sizeof(Decision)});
  place(h.schedule_offset, h.schedule_bytes);
  h.total_bytes = at;
  h.partials_bytes = align(h.partial_rows * (spec.head_dim + 1) * int64_t{sizeof(float)}, 64);
}

void Planner::State::write(const PlanHeader& h, const cuda::Scheduler::Problem& schedule,
                           std::byte* bytes) const {
  // Equal plans are equal bytes: nothing between sections, nor in entries, may be left as it was.
  static_assert(cuda::kHaveNoPadding<PlanRow, WorkItem, MergeGroup>);
  static_assert(sizeof(Decision) == 8 * sizeof(int32_t) + 2 * sizeof(double));
  static_assert(sizeof(PlanCost) == 3 * sizeof(double) + 7 * sizeof(int64_t));
  static_assert(offsetof(PlanHeader, page_table_len) ==
                offsetof(PlanHeader, reserved) + sizeof(PlanHeader::reserved));
  std::memset(bytes, 0, h.total_bytes);
  std::memcpy(bytes, &h, sizeof(h));
  const auto copy = [bytes](int64_t offset, const auto& entries) {
    if (!entries.empty()) {
      std::memcpy(bytes + offset, entries.data(), entries.size() * sizeof(entries[0]));
    }
  };
  copy(h.rows_offset, order.rows);
  copy(h.items_offset, list.items());
  copy(h.merges_offset, list.merges());
  copy(h.sources_offset, list.sources());
  copy(h.decisions_offset, decisions);
  if (h.schedule_bytes > 0) scheduler.write(schedule, bytes + h.schedule_offset);
}

Planner::Planner(DeviceProfile profile) : state_(std::make_unique<State>()) {
  check_profile(profile);
  state_->profile = profile;
}
Planner::~Planner() = default;
Planner::Planner(Planner&&) noexcept = default;
Planner& Planner::operator=(Planner&&) noexcept = default;

const DeviceProfile& Planner::profile() const { return state_->profile; }

void Planner::plan(const Forest& forest, const AttentionSpec& spec, const PlanOptions& options,
                   Plan& into) {
  State& s = *state_;
  check_spec(spec, forest, s.profile.backend);
  check_options(options, s.profile, forest.page_tokens());
  const CostModel cost(s.profile, spec, options.batch_invariant);

  const bool on_cuda = s.profile.backend == Backend::kCuda;
  // What batch-invariant plans share: whole cuts on the CPU, whole tiles on CUDA.
  PlanOptions sharing = options;
  if (on_cuda) sharing.cut_tokens = cuda::kTileTokens;
  s.order.build(forest, spec);
  s.sharing.decide(forest, s.order, cost, sharing, s.decisions);
  const auto predict = [&](bool share, std::vector<Run>& runs, Splitter& splitter) {
    const auto shared = share ? s.sharing.shared() : std::span<const uint8_t>{};
    list_runs(forest, s.order, shared, sharing, s.scratch, runs);
    splitter.split(runs, {s.order, cost, s.profile, options, forest.page_tokens(),
                          s.sharing.memory_us(forest, cost, share)});
    return splitter.prediction();
  };
  // On CUDA what counts is the schedule. That of a batch without sharing is long, so it is made
  // only where it could be the better one.
  const auto problem = [&](bool share) {
    return s.schedule_problem(forest, spec, options, share ? s.runs : s.unshared_runs);
  };
  const auto schedule = [&](bool share, Prediction& prediction) {
    cuda::Scheduler::Problem to_build = problem(share);
    to_build.memory_bytes = s.sharing.memory_bytes(forest, cost, share);
    s.scheduler.build(to_build);
    prediction.us = s.profile.launch_us + s.scheduler.predicted_us();
    prediction.kv_bytes = s.scheduler.kv_tokens() * cost.token_head_bytes();
  };
  constexpr double kClearly = 2;
  Prediction unshared = predict(false, s.unshared_runs, s.unshared_splitter);
  Prediction prediction = unshared;
  bool share = std::ranges::any_of(s.sharing.shared(), [](uint8_t shared) { return shared; });
  if (share) {
    prediction = predict(true, s.runs, s.splitter);
    const bool close = unshared.us < kClearly * prediction.us;
    if (on_cuda && options.sharing == Sharing::kAuto && close) schedule(false, unshared);
    if (on_cuda) schedule(true, prediction);
    if (options.sharing == Sharing::kAuto && prediction.us >= unshared.us) {
      share = false;
      for (Decision& decision : s.decisions) {
        if (decision.reason == Reason::kShared) decision.reason = Reason::kPlanSlower;
      }
    }
  }
  if (!share) {
    if (on_cuda) schedule(false, unshared);
    prediction = unshared;
  }
  PlanHeader h;
  if (on_cuda) {
    h.schedule_bytes = s.scheduler.header().total_bytes;
    h.units = s.scheduler.header().units;
    h.partial_rows = s.scheduler.header().partial_rows;
  } else {
    require(prediction.partial_slots <= std::numeric_limits<int32_t>::max(),
            "batch: the plan needs {} partial rows, more than 2^31 - 1", prediction.partial_slots);
    s.list.build(share ? s.runs : s.unshared_runs,
                 (share ? s.splitter : s.unshared_splitter).tiles(), forest.page_indptr(),
                 static_cast<int32_t>(cost.packed(forest.q_rows())));
    h.partial_slots = static_cast<int32_t>(prediction.partial_slots);
    h.partial_rows = prediction.partial_slots * spec.kv_heads;
  }

  int64_t seen = 0;
  int32_t tree_rows = 0;
  for (const PlanRow& row : s.order.rows) {
    seen += row.tree_begin - row.visible_begin + std::popcount(row.tree_mask);
    tree_rows += row.tree_mask != 0;
  }
  const int64_t flops = seen * 4 * spec.q_heads * spec.head_dim;
  const int64_t unique_bytes = s.sharing.unique_bytes(forest, cost);
  const int64_t io_bytes =
      2 * int64_t{forest.q_rows()} * spec.q_heads * spec.head_dim * dtype_bytes(spec.dtype);

  h.q_heads = spec.q_heads;
  h.kv_heads = spec.kv_heads;
  h.head_dim = spec.head_dim;
  h.dtype = spec.dtype;
  h.kv_dtype = spec.kv_dtype_or_default();
  h.scale = spec.scale_or_default();
  h.soft_cap = spec.soft_cap;
  h.tree_rows = tree_rows;
  h.page_tokens = forest.page_tokens();
  h.max_page_id = forest.max_page_id();
  h.sequences = forest.sequences();
  h.batch_invariant = options.batch_invariant;
  h.backend = s.profile.backend;
  h.workers = s.profile.workers;
  h.row_tile = s.profile.row_tile;
  h.kv_tile = s.profile.kv_tile;
  h.narrow_rows = cost.narrow_rows();
  h.cut_tokens = options.batch_invariant ? options.cut_tokens : 0;
  h.page_table_len = forest.page_indptr().back();
  h.scratch_bytes = s.profile.backend == Backend::kCpu
                        ? cpu_scratch_bytes(s.profile.row_tile, s.profile.kv_tile, spec.head_dim)
                        : 0;
  h.device = s.profile.name;
  s.lay_out(spec, h);
  h.cost = {.predicted_us = prediction.us,
            .predicted_unshared_us = unshared.us,
            .roof_us = cost.roof_us(static_cast<double>(unique_bytes + io_bytes),
                                    static_cast<double>(flops)),
            .kv_bytes = prediction.kv_bytes,
            .unshared_kv_bytes = unshared.kv_bytes,
            .io_bytes = io_bytes,
            .partial_bytes = 2 * h.partials_bytes,
            .flops = flops,
            .padded_flops = prediction.padded_flops,
            .unshared_padded_flops = unshared.padded_flops};
  into.blocks_.resize(h.total_bytes / sizeof(Plan::Block));
  s.write(h, problem(share), reinterpret_cast<std::byte*>(into.blocks_.data()));
}

Plan plan(const Forest& forest, const AttentionSpec& spec, const DeviceProfile& profile,
          const PlanOptions& options) {
  Planner planner(profile);
  Plan result;
  planner.plan(forest, spec, options, result);
  return result;
}

}  // namespace pando
