// The subcommands: what each is told, and what it does. A command returns the exit code (0: done,
// 1: a case failed) and throws Error for bad input (exit code 2).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "pando/attention.h"
#include "pando/plan.h"
#include "replay/options.h"

namespace pando::cli {

/// What every subcommand that computes or plans has in common.
struct CommonOptions {
  bool json = false;
  std::string backend = "auto";
  int threads = 0;  ///< 0: all cores
};

struct InfoOptions : CommonOptions {
  bool measure = false;
  std::string profile;  ///< empty: of the backend
};

struct DemoOptions : CommonOptions {
  int reps = 10;
};

struct GenOptions {
  bool json = false;
  std::string out;
  std::string tree;   ///< "1,4,16:512,128,32"
  std::string shape;  ///< a name of the shapes table
  double scale = 1;
  int32_t batch = 8;
  int32_t prefix = 1024;
  int32_t suffix = 128;
  std::optional<int32_t> suffix_min;  ///< absent: all suffixes are `suffix` long
  int32_t q_len = 1;
  std::optional<int32_t> q_heads;   ///< absent: of the shape, or 32
  std::optional<int32_t> kv_heads;  ///< absent: of the shape, or 8
  int32_t head_dim = 128;
  std::string dtype = "bf16";
  std::string kv_dtype;  ///< empty: as dtype
  std::string layout = "hnd";
  int32_t page_tokens = 64;
  int32_t window = 0;
  bool no_causal = false;
  double soft_cap = 0;
  bool sinks = false;
  bool draft_trees = false;
  std::string data = "randn";
  std::string unused = "zero";
  uint64_t seed = 0;
};

struct PlanCommandOptions : CommonOptions {
  std::string file;
  std::string sharing = "auto";
  bool batch_invariant = false;
  int32_t cut_tokens = PlanOptions{}.cut_tokens;
  std::string profile;  ///< empty: of the backend
  bool items = false;
};

struct VerifyOptions : CommonOptions {
  std::string profile;  ///< empty: of the backend
  std::string suite = "all";
  std::string file;
  std::string kv_dtype;  ///< empty: as the suites have it
  int cases = 200;
  uint64_t seed = 1;
  bool quick = false;
  bool verbose = false;
};

struct BenchOptions : CommonOptions {
  std::vector<std::string> shapes;
  bool trees = false;
  bool seed_sweep = false;
  bool scale_axes = false;
  std::string scale = "auto";
  int32_t head_dim = 128;
  std::string dtype = "bf16";
  std::string kv_dtype;  ///< empty: as dtype
  std::string layout = "hnd";
  int32_t page_tokens = 64;
  std::optional<int> reps;  ///< absent: as many as the backend needs
  bool warm = false;
  bool batch_invariant = false;
  int32_t cut_tokens = PlanOptions{}.cut_tokens;
  bool plan_only = false;
  std::string profile;  ///< empty: of the backend; with --plan-only cpu
  std::string against;
  std::string out;
  std::string command;  ///< as it was called, for records
};

struct CalibrateOptions : CommonOptions {
  std::string out;   ///< the profile
  std::string from;  ///< a record to fit again
  bool check = false;
  std::vector<std::string> shapes;  ///< to predict; empty: those of the table
  std::string command;              ///< as it was called, for records
};

struct ReplayCommandOptions : CommonOptions {
  std::string trace;
  std::string scale = "1";
  std::string dtype = "bf16";
  bool steps_too = false;
  replay::ReplayOptions engine;
};

int run_info(const InfoOptions& options);
int run_demo(const DemoOptions& options);
int run_gen(const GenOptions& options);
int run_plan(const PlanCommandOptions& options);
int run_verify(const VerifyOptions& options);
int run_bench(const BenchOptions& options);
int run_calibrate(const CalibrateOptions& options);
int run_replay(const ReplayCommandOptions& options);

}  // namespace pando::cli
