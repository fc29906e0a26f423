#include "replay/replay.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <numeric>

#include "cases/rng.h"
#include "core/check.h"
#include "pando/plan.h"
#include "reference/oracle.h"
#include "replay/attender.h"

namespace pando::replay {
namespace {

double microseconds(std::chrono::steady_clock::duration time) {
  return std::chrono::duration<double, std::micro>(time).count();
}

template <typename Call>
double time_us(Call&& call) {
  const auto start = std::chrono::steady_clock::now();
  call();
  return microseconds(std::chrono::steady_clock::now() - start);
}

/// Everything of a replay but the requests: forest, plans, executor and tensors.
class Decoder {
 public:
  Decoder(const ReplayOptions& options, KvMemory& memory)
      : options_(options),
        memory_(memory),
        attender_(make_attender(options, memory)),
        planner_(options.profile ? *options.profile : attender_->profile()),
        rows_(options.dtype, int64_t{options.q_heads} * options.head_dim,
              cases::mix_seed(options.seed, 2)),
        check_rng_(cases::mix_seed(options.seed, 3)) {
    spec_.q_heads = options.q_heads;
    spec_.kv_heads = options.kv_heads;
    spec_.head_dim = options.head_dim;
    spec_.dtype = options.dtype;
    unshared_.options.sharing = Sharing::kNone;
    const int64_t bytes = options.slots * row_bytes();
    q_ = cases::Buffer(bytes);
    for (Side* side : {&shared_, &unshared_}) {
      side->out = cases::Buffer(bytes);
      side->lse.resize(int64_t{options.slots} * options.q_heads);
    }
  }

  StepRecord step(int64_t step, const BatchView& batch, std::span<const int32_t> changed);
  void check(const BatchView& batch, OracleVerdict& verdict);
  const DeviceProfile& profile() const { return planner_.profile(); }
  const Attender& attender() const { return *attender_; }

 private:
  int64_t row_bytes() const {
    return int64_t{options_.q_heads} * options_.head_dim * dtype_bytes(options_.dtype);
  }
  double plan_side(Side& side);

  const ReplayOptions& options_;
  const KvMemory& memory_;
  AttentionSpec spec_;
  Forest forest_;
  std::unique_ptr<Attender> attender_;
  Planner planner_;
  RandomRows rows_;
  cases::Rng check_rng_;
  cases::Buffer q_;
  Side shared_;
  Side unshared_;
};

StepRecord Decoder::step(int64_t step, const BatchView& batch, std::span<const int32_t> changed) {
  StepRecord record;
  record.step = step;
  record.sequences = batch.sequences();
  record.tokens = std::accumulate(batch.kv_len.begin(), batch.kv_len.end(), int64_t{0});
  for (int32_t row = 0; row < batch.sequences(); ++row) rows_.fill(q_.data() + row * row_bytes());

  record.update_us =
      time_us([&] { step == 0 ? forest_.discover(batch) : forest_.update(batch, changed); });
  record.plan_us = plan_side(shared_);
  record.unshared_plan_us = plan_side(unshared_);
  const StepInputs inputs{q_, batch.page_ids};
  attender_->begin_step(inputs);
  if (step == 0) {  // untimed: memory that the system has not handed out yet
    attender_->attend(shared_, inputs);
    attender_->attend(unshared_, inputs);
  }
  record.attend_us = record.unshared_us = std::numeric_limits<double>::infinity();
  for (int32_t repeat = 0; repeat < options_.repeats; ++repeat) {
    // The second of the two finds the end of the KV in cache, so they take turns.
    const bool shared_first = (step + repeat) % 2 == 0;
    const double first_us = attender_->attend(shared_first ? shared_ : unshared_, inputs);
    const double second_us = attender_->attend(shared_first ? unshared_ : shared_, inputs);
    record.attend_us = std::min(record.attend_us, shared_first ? first_us : second_us);
    record.unshared_us = std::min(record.unshared_us, shared_first ? second_us : first_us);
  }

  record.kv_bytes = shared_.plan.cost().kv_bytes;
  record.unshared_kv_bytes = unshared_.plan.cost().kv_bytes;
  record.shared_segments = static_cast<int32_t>(std::ranges::count(
      shared_.plan.decisions(), Reason::kShared, [](const Decision& d) { return d.reason; }));
  return record;
}

double Decoder::plan_side(Side& side) {
  return time_us([&] { planner_.plan(forest_, spec_, side.options, side.plan); });
}

/// Compares a few rows of both results with the oracle.
void Decoder::check(const BatchView& batch, OracleVerdict& verdict) {
  std::vector<int32_t> rows(batch.sequences());
  std::iota(rows.begin(), rows.end(), 0);
  check_rng_.shuffle(rows);
  rows.resize(std::min<size_t>(rows.size(), options_.check_rows));
  const Problem problem{batch, spec_, {q_.data()}, memory_.k(), memory_.v(), memory_.layout()};
  for (const Side* side : {&shared_, &unshared_}) {
    const CheckResult result = check_result(problem, {side->out.data()}, side->lse.data(), rows);
    const double out_share = result.got.max_err_out / result.allowed.out;
    const double lse_share = result.got.max_err_lse / result.allowed.lse;
    if (out_share >= verdict.worst_share) verdict.allowed = result.allowed.out;
    verdict.worst_share = std::max({verdict.worst_share, out_share, lse_share});
    verdict.max_error = std::max(verdict.max_error, result.got.max_err_out);
    verdict.passed = verdict.passed && result.passed();
    verdict.rows += static_cast<int64_t>(rows.size());
  }
}

}  // namespace

ReplayResult run_replay(const Trace& trace, const ReplayOptions& options,
                        const Progress& progress) {
  options.check();
  KvMemory memory(options);
  Scheduler scheduler(trace, options, memory);
  Decoder decoder(options, memory);

  ReplayResult result;
  result.options = options;
  result.requests = static_cast<int64_t>(trace.size());
  result.threads = decoder.attender().workers();
  result.device = decoder.profile().name.data();
  result.simd = decoder.attender().name();
  for (int64_t step = 0; options.steps == 0 || step < options.steps; ++step) {
    if (!scheduler.step()) break;
    const BatchView batch = scheduler.batch();
    result.steps.push_back(decoder.step(step, batch, scheduler.changed()));
    if (options.check_every > 0 && step % options.check_every == 0) {
      decoder.check(batch, result.oracle);
    }
    if (progress) progress(result.steps.back());
  }
  result.counts = scheduler.counts();
  if (result.steps.empty()) {
    fail(ErrorCode::kOutOfPages,
         "pool_tokens: got {}, want more: each of the {} requests of the trace is longer",
         options.pool_tokens, trace.size());
  }
  return result;
}

}  // namespace pando::replay
