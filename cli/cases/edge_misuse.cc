// Row 14 of the edges suite: misuse is refused with an error that names the argument, and nothing
// is written.
#include <algorithm>
#include <limits>

#include "cases/device_case.h"
#include "cases/suites.h"
#include "core/check.h"
#include "pando/profile.h"

namespace pando::cases {
namespace {

constexpr int32_t kHeadDim = 128;
constexpr int64_t kRows = 3;
constexpr int64_t kHeads = 8;

/// Everything that a caller hands over, right until a misuse spoils some of it.
struct Inputs {
  Case problem;
  AttentionSpec spec;
  PlanOptions options;
  DeviceProfile profile;
  DeviceProfile other_profile;  ///< of a backend that the call is not for
  std::function<void(AttendArgs&)> spoil_args = [](AttendArgs&) {};
  bool default_plan = false;
};

struct Misuse {
  std::string name;
  ErrorCode code;
  std::string argument;  ///< the message must contain it
  std::function<void(Inputs&)> spoil;
};

Inputs valid_inputs(const Runner& runner) {
  Inputs inputs;
  const bool cuda = runner.backend() == Backend::kCuda;
  inputs.profile = cuda ? cuda_profile() : cpu_profile(2);
  inputs.other_profile = cuda ? cpu_profile(2) : h100_profile();
  ForestShape shape;
  shape.add_node(-1, 40);
  shape.add_sequence(shape.add_node(0, 9), 2);
  shape.add_sequence(shape.add_node(0, 30), 1);
  Rng rng(14);
  Case& problem = inputs.problem;
  problem.tables = page_tables(shape, {.page_tokens = 16}, rng);
  problem.spec.q_heads = 8;
  problem.spec.kv_heads = 2;
  problem.spec.head_dim = kHeadDim;
  fill_data(problem, {});
  inputs.spec = problem.spec;
  return inputs;
}

std::vector<Misuse> table_misuses() {
  constexpr auto kInvalid = ErrorCode::kInvalidArgument;
  const auto tables = [](auto spoil) {
    return [spoil](Inputs& inputs) { spoil(inputs.problem.tables); };
  };
  return {
      {"q_indptr-too-short", kInvalid, "q_indptr",
       tables([](Tables& t) { t.q_indptr.pop_back(); })},
      {"q_indptr-too-long", kInvalid, "q_indptr",
       tables([](Tables& t) { t.q_indptr.push_back(3); })},
      {"q_indptr-empty", kInvalid, "q_indptr", tables([](Tables& t) { t.q_indptr.clear(); })},
      {"q_indptr-decreasing", kInvalid, "q_indptr", tables([](Tables& t) { t.q_indptr[1] = 4; })},
      {"q_indptr-not-from-0", kInvalid, "q_indptr", tables([](Tables& t) { t.q_indptr[0] = 1; })},
      {"q_indptr-negative", kInvalid, "q_indptr", tables([](Tables& t) { t.q_indptr[1] = -1; })},
      {"page_indptr-too-short", kInvalid, "page_indptr",
       tables([](Tables& t) { t.page_indptr.pop_back(); })},
      {"page_indptr-decreasing", kInvalid, "page_indptr",
       tables([](Tables& t) { t.page_indptr[1] = 1000; })},
      {"page_indptr-negative", kInvalid, "page_indptr",
       tables([](Tables& t) { t.page_indptr[0] = -1; })},
      {"page_indptr-past-the-ids", kInvalid, "page_indptr",
       tables([](Tables& t) { t.page_ids.pop_back(); })},
      {"page_id-negative", kInvalid, "page_ids", tables([](Tables& t) { t.page_ids[2] = -1; })},
      {"page_id-out-of-range", kInvalid, "num_pages",
       tables([](Tables& t) { t.page_ids[2] = static_cast<int32_t>(t.num_pages); })},
      {"page_id-largest", kInvalid, "page_ids",
       tables([](Tables& t) { t.page_ids[2] = std::numeric_limits<int32_t>::min(); })},
      {"kv_len-beyond-the-table", kInvalid, "kv_len", tables([](Tables& t) { t.kv_len[0] = 65; })},
      {"kv_len-negative", kInvalid, "kv_len", tables([](Tables& t) { t.kv_len[1] = -1; })},
      {"kv_len-huge", kInvalid, "kv_len",
       tables([](Tables& t) { t.kv_len[1] = std::numeric_limits<int32_t>::max(); })},
      {"page_tokens-0", kInvalid, "page_tokens", tables([](Tables& t) { t.page_tokens = 0; })},
      {"page_tokens-12", kInvalid, "page_tokens", tables([](Tables& t) { t.page_tokens = 12; })},
      {"page_tokens-512", kInvalid, "page_tokens", tables([](Tables& t) { t.page_tokens = 512; })},
  };
}

std::vector<Misuse> plan_misuses() {
  constexpr auto kInvalid = ErrorCode::kInvalidArgument;
  static const std::vector<VisibleRange> kTwoRanges(2);
  const auto spec = [](auto spoil) { return [spoil](Inputs& inputs) { spoil(inputs.spec); }; };
  return {
      {"head_dim-100", ErrorCode::kUnsupported, "head_dim",
       spec([](AttentionSpec& s) { s.head_dim = 100; })},
      {"head_dim-264", ErrorCode::kUnsupported, "head_dim",
       spec([](AttentionSpec& s) { s.head_dim = 264; })},
      {"head_dim-0", kInvalid, "head_dim", spec([](AttentionSpec& s) { s.head_dim = 0; })},
      {"q_heads-not-a-multiple", kInvalid, "q_heads",
       spec([](AttentionSpec& s) { s.q_heads = 7; })},
      {"q_heads-0", kInvalid, "q_heads", spec([](AttentionSpec& s) { s.q_heads = 0; })},
      {"kv_heads-0", kInvalid, "kv_heads", spec([](AttentionSpec& s) { s.kv_heads = 0; })},
      {"kv_heads-negative", kInvalid, "kv_heads", spec([](AttentionSpec& s) { s.kv_heads = -2; })},
      {"dtype-unknown", kInvalid, "dtype",
       spec([](AttentionSpec& s) { s.dtype = static_cast<DType>(9); })},
      {"dtype-fp8", kInvalid, "dtype", spec([](AttentionSpec& s) { s.dtype = DType::kE4M3; })},
      {"kv_dtype-another", kInvalid, "kv_dtype",
       spec([](AttentionSpec& s) { s.kv_dtype = DType::kF16; })},
      {"window-negative", kInvalid, "window", spec([](AttentionSpec& s) { s.window = -1; })},
      {"scale-nan", kInvalid, "scale",
       spec([](AttentionSpec& s) { s.scale = std::numeric_limits<float>::quiet_NaN(); })},
      {"visible-wrong-length", kInvalid, "visible",
       spec([](AttentionSpec& s) { s.visible = kTwoRanges; })},
      {"soft_cap-negative", kInvalid, "soft_cap", spec([](AttentionSpec& s) { s.soft_cap = -50; })},
      {"soft_cap-nan", kInvalid, "soft_cap",
       spec([](AttentionSpec& s) { s.soft_cap = std::numeric_limits<float>::quiet_NaN(); })},
      {"cut_tokens-0", kInvalid, "cut_tokens",
       [](Inputs& inputs) { inputs.options = {.batch_invariant = true, .cut_tokens = 0}; }},
      {"cut_tokens-uneven", kInvalid, "cut_tokens",
       [](Inputs& inputs) { inputs.options = {.batch_invariant = true, .cut_tokens = 100}; }},
  };
}

std::vector<Misuse> attend_misuses() {
  constexpr auto kInvalid = ErrorCode::kInvalidArgument;
  static const std::vector<float> kOneScale(1, 1.0f);
  const auto args = [](auto spoil) {
    return [spoil](Inputs& inputs) { inputs.spoil_args = spoil; };
  };
  return {
      {"q-null", kInvalid, "q", args([](AttendArgs& a) { a.q.data = nullptr; })},
      {"k-null", kInvalid, "k", args([](AttendArgs& a) { a.k = nullptr; })},
      {"v-null", kInvalid, "v", args([](AttendArgs& a) { a.v = nullptr; })},
      {"out-null", kInvalid, "out", args([](AttendArgs& a) { a.out.data = nullptr; })},
      {"q-rows-overlap", kInvalid, "q", args([](AttendArgs& a) { a.q.head_stride = 8; })},
      {"out-heads-overlap", kInvalid, "out",
       args([](AttendArgs& a) { a.out.row_stride = 8 * kHeadDim, a.out.head_stride = 64; })},
      {"out-rows-overlap", kInvalid, "out",
       args([](AttendArgs& a) { a.out.row_stride = kHeadDim, a.out.head_stride = kHeadDim; })},
      {"kv-head_dim", kInvalid, "head_dim", args([](AttendArgs& a) { a.kv.head_dim = 32; })},
      {"kv-kv_heads", kInvalid, "kv_heads", args([](AttendArgs& a) { a.kv.kv_heads = 1; })},
      {"kv-page_tokens", kInvalid, "page_tokens",
       args([](AttendArgs& a) { a.kv.page_tokens = 8; })},
      {"kv-num_pages", kInvalid, "num_pages", args([](AttendArgs& a) { a.kv.num_pages = 1; })},
      {"kv-token_stride", kInvalid, "token_stride",
       args([](AttendArgs& a) { a.kv.token_stride = 8; })},
      {"page_ids-too-few", kInvalid, "page_ids",
       args([](AttendArgs& a) { a.page_ids = a.page_ids.first(3); })},
      {"workspace-too-small", kInvalid, "workspace",
       args([](AttendArgs& a) { a.workspace = a.workspace.first(a.workspace.size() - 1); })},
      {"workspace-not-aligned", kInvalid, "workspace", args([](AttendArgs& a) {
         a.workspace = {a.workspace.data() + 4, a.workspace.size()};
       })},
      {"k_scale-without-fp8", kInvalid, "k_scale",
       args([](AttendArgs& a) { a.k_scale = kOneScale; })},
      {"v_scale-without-fp8", kInvalid, "v_scale",
       args([](AttendArgs& a) { a.v_scale = kOneScale; })},
      {"plan-empty", kInvalid, "plan", [](Inputs& inputs) { inputs.default_plan = true; }},
      {"plan-for-another-device", ErrorCode::kTypeMismatch, "plan",
       [](Inputs& inputs) { inputs.profile = inputs.other_profile; }},
  };
}

/// Arguments for `work` before they are spoilt, but for the memory that they point to.
AttendArgs valid_args(const Case& problem, std::byte* out, std::byte* lse,
                      std::span<std::byte> workspace) {
  AttendArgs args;
  args.q = problem.q_view();
  args.k = problem.k.data();
  args.v = problem.v.data();
  args.kv = problem.kv();
  args.page_ids = problem.tables.page_ids;
  args.out = {out, 0, 0};
  args.lse = reinterpret_cast<float*>(lse);
  args.workspace = workspace;
  return args;
}

/// Calls attend of the runner's backend; out and lse are poison, and what is left of them after the
/// call is put into `out` and `lse`.
void call(const Inputs& inputs, const Plan& work, Runner& runner, Buffer& out, Buffer& lse) {
  const Case& problem = inputs.problem;
  const size_t bytes = inputs.default_plan ? 0 : work.workspace_bytes();
  if (runner.backend() == Backend::kCpu) {
    Buffer workspace(bytes + Buffer::kAlignment);
    AttendArgs args = valid_args(problem, out.data(), lse.data(), workspace.span().first(bytes));
    inputs.spoil_args(args);
    CpuExecutor executor(2);
    attend(work, args, executor);
    return;
  }
  const DeviceCase on_device(problem);
  const DeviceBuffer device_out(out.span()), device_lse(lse.span());
  const DeviceBuffer workspace(bytes + Buffer::kAlignment);
  AttendArgs args =
      valid_args(problem, device_out.data(), device_lse.data(), {workspace.data(), bytes});
  const AttendArgs device_inputs = on_device.inputs();
  args.q = device_inputs.q;
  args.k = device_inputs.k;
  args.v = device_inputs.v;
  args.page_ids = device_inputs.page_ids;
  inputs.spoil_args(args);
  const auto look = [&] {
    runner.cuda().stream.synchronize();
    device_out.download(out.span());
    device_lse.download(lse.span());
  };
  try {
    attend(work, args, runner.cuda().executor, runner.cuda().stream.get());
  } catch (const Error&) {
    look();
    throw;
  }
  look();
}

/// Runs the spoilt inputs; nothing may be written before they are refused.
Outcome refuse(const Misuse& misuse, Runner& runner) {
  Outcome outcome;
  outcome.runs = 1;
  Inputs inputs = valid_inputs(runner);
  misuse.spoil(inputs);
  Buffer out = poisoned(kRows * kHeads * kHeadDim * 2);
  Buffer lse = poisoned(kRows * kHeads * sizeof(float));
  try {
    const Forest forest = discover(inputs.problem.tables.batch());
    Plan work;
    if (!inputs.default_plan) work = plan(forest, inputs.spec, inputs.profile, inputs.options);
    if (misuse.argument == "workspace" && work.workspace_bytes() == 0) {
      return Outcome::skipped("this plan needs no workspace");
    }
    call(inputs, work, runner, out, lse);
    outcome.fail("was accepted");
  } catch (const Error& error) {
    outcome.expect(error.code == misuse.code,
                   fmt::format("error code {}, want {}: {}", static_cast<int>(error.code),
                               static_cast<int>(misuse.code), error.message));
    outcome.expect(error.message.find(misuse.argument) != std::string::npos,
                   fmt::format("does not name '{}': {}", misuse.argument, error.message));
  }
  outcome.expect(is_poison(out.data(), out.size()) && is_poison(lse.data(), lse.size()),
                 "something was written");
  return outcome;
}

}  // namespace

std::vector<SuiteCase> misuse_cases() {
  std::vector<SuiteCase> cases;
  for (const auto& group : {table_misuses(), plan_misuses(), attend_misuses()}) {
    for (const Misuse& misuse : group) {
      cases.push_back({"edges", "14-misuse/" + misuse.name,
                       [misuse](Runner& runner) { return refuse(misuse, runner); }});
    }
  }
  return cases;
}

}  // namespace pando::cases
