// The pando program: parses the command line and runs one subcommand.
#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <functional>
#include <new>
#include <string>
#include <string_view>

#include "commands/commands.h"
#include "options.h"
#include "pando/error.h"
#include "pando/version.h"

namespace pando::cli {
namespace {

constexpr int kBadInput = 2;
constexpr char kPath[] = "the path of a file";
constexpr char kProfile[] = "one of cpu, h100, or a file";
constexpr char kShape[] = "a shape or tree of the table";
constexpr char kLevels[] = "nodes and tokens of each level, such as 1,4,16:512,128,32";
constexpr char kFp8[] = "fp8, or none of it: as dtype";

/// All options; each subcommand reads its own.
struct Options {
  InfoOptions info;
  DemoOptions demo;
  GenOptions gen;
  PlanCommandOptions plan;
  VerifyOptions verify;
  BenchOptions bench;
  CalibrateOptions calibrate;
  ReplayCommandOptions replay;
};

using Command = std::function<int()>;

CLI::App* add_command(CLI::App& app, const char* name, const char* what, Command& chosen,
                      Command run) {
  CLI::App* command = app.add_subcommand(name, what);
  command->callback([&chosen, run = std::move(run)] { chosen = run; });
  return command;
}

void add_common(CLI::App* command, CommonOptions& options) {
  command->add_flag("--json", options.json, "Print JSON");
  command->add_option("--backend", options.backend, "cpu, cuda or auto")->capture_default_str();
  command->add_option("--threads", options.threads, "Threads; 0: all cores")->capture_default_str();
}

void add_profile(CLI::App* command, std::string& profile) {
  add_text(command, "--profile", profile,
           "Plan for: a file of pando calibrate, cpu or h100; else as stored", kProfile);
}

void add_info(CLI::App& app, InfoOptions& o, Command& chosen) {
  auto* command = add_command(app, "info", "Version, machine, and what is supported", chosen,
                              [&o] { return run_info(o); });
  add_common(command, o);
  auto* measure = command->add_flag("--measure", o.measure, "Measure bandwidth and peak now");
  add_text(command, "--profile", o.profile, "Show a file of pando calibrate, cpu or h100", kProfile)
      ->excludes(measure);
}

void add_demo(CLI::App& app, DemoOptions& o, Command& chosen) {
  auto* command = add_command(app, "demo", "A forest, what is shared in it, and the gain", chosen,
                              [&o] { return run_demo(o); });
  add_common(command, o);
  command->add_option("--reps", o.reps, "Timed runs")->capture_default_str();
}

void add_gen(CLI::App& app, GenOptions& o, Command& chosen) {
  auto* command = add_command(app, "gen", "Write a case file", chosen, [&o] { return run_gen(o); });
  command->add_flag("--json", o.json, "Print JSON");
  add_text(command, "file", o.out, "The file to write (safetensors)", kPath)->required();
  auto* tree =
      add_text(command, "--tree", o.tree, "Nodes and tokens by level: 1,4,16:512,128,32", kLevels);
  auto* shape = add_text(command, "--shape", o.shape, "A shape or tree of the table", kShape);
  command->add_option("--scale", o.scale, "Factor on the shape's tokens")
      ->needs(shape)
      ->capture_default_str();
  tree->excludes(shape);
  for (const auto& [name, value, what] :
       {std::tuple{"--batch", &o.batch, "Sequences"},
        {"--prefix", &o.prefix, "Tokens that all sequences share"},
        {"--suffix", &o.suffix, "Own tokens of each sequence"}}) {
    command->add_option(name, *value, what)->capture_default_str()->excludes(tree)->excludes(shape);
  }
  command->add_option("--suffix-min", o.suffix_min, "Least own tokens: ragged up to --suffix")
      ->excludes(tree)
      ->excludes(shape);
  command->add_option("--q-len", o.q_len, "Query rows of each sequence")->capture_default_str();
  command->add_option("--q-heads", o.q_heads, "Query heads; 32, or the shape's");
  command->add_option("--kv-heads", o.kv_heads, "KV heads; 8, or the shape's");
  command->add_option("--head-dim", o.head_dim, "Elements of a head")->capture_default_str();
  command->add_option("--dtype", o.dtype, "fp32, bf16 or fp16")->capture_default_str();
  add_text(command, "--kv-dtype", o.kv_dtype, "Of K and V: fp8; else as --dtype", kFp8);
  command->add_option("--layout", o.layout, "hnd or nhd")->capture_default_str();
  command->add_option("--page-tokens", o.page_tokens, "Tokens of a page")->capture_default_str();
  command->add_option("--window", o.window, "Sliding window; 0: none")->capture_default_str();
  command->add_flag("--no-causal", o.no_causal, "Every row sees the whole sequence");
  command->add_option("--soft-cap", o.soft_cap, "Scores stay within it; 0: no cap")
      ->capture_default_str();
  command->add_flag("--sinks", o.sinks, "A random attention sink for each query head");
  command->add_flag("--draft-trees", o.draft_trees,
                    "The query rows of each sequence are a random tree of draft tokens");
  command->add_option("--data", o.data, "randn, small or adversarial")->capture_default_str();
  command->add_option("--unused", o.unused, "In unused slots: zero, nan, inf or mixed")
      ->capture_default_str();
  add_seed(command, o.seed, "Same seed, same bytes")->capture_default_str();
}

void add_plan(CLI::App& app, PlanCommandOptions& o, Command& chosen) {
  auto* command = add_command(app, "plan", "What would be shared in a case, and why", chosen,
                              [&o] { return run_plan(o); });
  add_common(command, o);
  add_text(command, "case", o.file, "A case file", kPath)->required();
  command->add_option("--sharing", o.sharing, "auto, none or all")->capture_default_str();
  auto* invariant = command->add_flag("--batch-invariant", o.batch_invariant,
                                      "Same bits for a sequence whoever else is in the batch");
  command->add_option("--cut-tokens", o.cut_tokens, "Distance of the cuts of --batch-invariant")
      ->needs(invariant)
      ->capture_default_str();
  add_profile(command, o.profile);
  command->add_flag("--items", o.items, "List the work items");
}

void add_verify(CLI::App& app, VerifyOptions& o, Command& chosen) {
  auto* command = add_command(app, "verify", "Compare with the fp64 oracle", chosen,
                              [&o] { return run_verify(o); });
  add_common(command, o);
  auto* file = add_text(command, "--case", o.file, "A case file instead of a suite", kPath);
  const auto suite_only = [&](CLI::Option* option) {
    option->capture_default_str()->excludes(file);
  };
  suite_only(command->add_option("--suite", o.suite, "seed, edges, shapes, random or all"));
  suite_only(command->add_option("--cases", o.cases, "Cases of the random suite"));
  suite_only(add_seed(command, o.seed, "Seed of the first random case"));
  suite_only(add_text(command, "--kv-dtype", o.kv_dtype, "fp8: of all cases", kFp8));
  suite_only(command->add_flag("--quick", o.quick, "Fewer kinds, smaller sizes"));
  command->add_flag("-v,--verbose", o.verbose, "One line a case");
  add_profile(command, o.profile);
}

void add_bench(CLI::App& app, BenchOptions& o, Command& chosen) {
  auto* command = add_command(app, "bench", "Time shapes with and without sharing", chosen,
                              [&o] { return run_bench(o); });
  add_common(command, o);
  auto* shapes = command->add_option("--shapes", o.shapes, "Names of shapes or trees, with commas")
                     ->delimiter(',');
  auto* trees =
      command->add_flag("--trees", o.trees, "The trees instead of the shapes")->excludes(shapes);
  auto* sweep = command
                    ->add_flag("--seed-sweep", o.seed_sweep,
                               "64 sequences on one prefix, 4 to 128 heads, instead")
                    ->excludes(shapes)
                    ->excludes(trees);
  command
      ->add_flag("--scale-axes", o.scale_axes,
                 "Sequences, prefix, depth and number of prefixes, one at a time, instead")
      ->excludes(shapes)
      ->excludes(trees)
      ->excludes(sweep);
  auto* scale =
      command->add_option("--scale", o.scale, "Factor on all tokens: auto, or such as 1/4")
          ->capture_default_str();
  command->add_option("--head-dim", o.head_dim, "Elements of a head")->capture_default_str();
  command->add_option("--dtype", o.dtype, "fp32, bf16 or fp16")->capture_default_str();
  add_text(command, "--kv-dtype", o.kv_dtype, "Of K and V: fp8; else as --dtype", kFp8);
  command->add_option("--layout", o.layout, "hnd or nhd")->capture_default_str();
  command->add_option("--page-tokens", o.page_tokens, "Tokens of a page")->capture_default_str();
  command->add_option("--reps", o.reps, "Timed runs of each kind; 10, on CUDA 25");
  auto* warm = command->add_flag("--warm", o.warm, "Leave the caches as the run before left them");
  auto* invariant = command->add_flag("--batch-invariant", o.batch_invariant,
                                      "Plans whose bits do not depend on who else is in the batch");
  command->add_option("--cut-tokens", o.cut_tokens, "Distance of the cuts of --batch-invariant")
      ->needs(invariant)
      ->capture_default_str();
  add_text(command, "--out", o.out, "Also write the JSON lines to a file", kPath);
  auto* against = add_text(command, "--against", o.against,
                           "Fail where a time is over 5 % above that of an earlier --out", kPath);
  command
      ->add_flag("--plan-only", o.plan_only,
                 "Time discover, update and plan on the host, at full size")
      ->excludes(against)
      ->excludes(scale)
      ->excludes(warm);
  add_profile(command, o.profile);
}

void add_calibrate(CLI::App& app, CalibrateOptions& o, Command& chosen) {
  auto* command = add_command(app, "calibrate", "Measure the constants of the cost model here",
                              chosen, [&o] { return run_calibrate(o); });
  add_common(command, o);
  add_text(command, "--out", o.out, "Write the profile to a file, for --profile", kPath);
  auto* check = command->add_flag("--check", o.check, "Time the shapes that are predicted");
  command->add_option("--shapes", o.shapes, "Predict these shapes or trees, with commas")
      ->delimiter(',');
  add_text(command, "--from", o.from, "Fit the points of an earlier --json again; needs no card",
           kPath)
      ->excludes(check);
}

void add_replay(CLI::App& app, ReplayCommandOptions& o, Command& chosen) {
  auto* command = add_command(app, "replay", "Decode a trace of requests, step by step", chosen,
                              [&o] { return run_replay(o); });
  add_common(command, o);
  replay::ReplayOptions& engine = o.engine;
  add_text(command, "trace", o.trace, "Mooncake trace (JSON lines)", kPath)->required();
  const auto add = [&](const char* name, auto& value, const char* what) {
    command->add_option(name, value, what)->capture_default_str();
  };
  add("--slots", engine.slots, "Sequences decoded at once, at most");
  add("--samples", engine.samples, "Answers sampled for each request");
  add("--pool-tokens", engine.pool_tokens, "KV memory in tokens");
  add("--page-tokens", engine.page_tokens, "Tokens of a page");
  add("--scale", o.scale, "Factor on all lengths, such as 1/16");
  add("--steps", engine.steps, "Decode steps; 0: until the trace ends");
  add("--step-ms", engine.step_ms, "Time of a step on the trace's clock; 0: no gaps");
  add("--q-heads", engine.q_heads, "Query heads");
  add("--kv-heads", engine.kv_heads, "KV heads");
  add("--head-dim", engine.head_dim, "Elements of a head");
  add("--dtype", o.dtype, "fp32, bf16 or fp16");
  add("--repeats", engine.repeats, "Times that each attend of a step runs; the fastest counts");
  add_seed(command, engine.seed, "Seed of q, k and v")->capture_default_str();
  add("--check-every", engine.check_every, "Steps between oracle checks; 0: never");
  add("--check-rows", engine.check_rows, "Sequences that one check covers, at most");
  command->add_flag("--step-records", o.steps_too, "With --json: also a record of each step");
}

/// What a reader types for the same record; where it went is not part of it.
std::string command_text(int argc, char** argv) {
  std::string text = "pando";
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    if (word == "--out") {
      ++i;
    } else if (!word.starts_with("--out=")) {
      text.append(" ").append(word);
    }
  }
  return text;
}

int run(int argc, char** argv) {
  CLI::App app("Attention over batches whose sequences share KV.", "pando");
  app.set_version_flag("--version", std::string("pando ") + version());
  app.require_subcommand(0, 1);  // none is answered below: by what there is
  app.get_formatter()->column_width(28);
  Options options;
  Command chosen;
  add_demo(app, options.demo, chosen);
  add_info(app, options.info, chosen);
  add_plan(app, options.plan, chosen);
  add_verify(app, options.verify, chosen);
  add_bench(app, options.bench, chosen);
  add_gen(app, options.gen, chosen);
  add_calibrate(app, options.calibrate, chosen);
  add_replay(app, options.replay, chosen);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? 0 : kBadInput;
  }
  if (!chosen) {
    fmt::print(stderr, "{}", app.help());
    return kBadInput;
  }
  options.bench.command = options.calibrate.command = command_text(argc, argv);
  return chosen();
}

}  // namespace
}  // namespace pando::cli

int main(int argc, char** argv) {
  try {
    return pando::cli::run(argc, argv);
  } catch (const pando::Error& error) {
    fmt::print(stderr, "pando: {}\n", error.message);
  } catch (const std::bad_alloc&) {
    fmt::print(stderr, "pando: not enough memory for this case\n");
  }
  return pando::cli::kBadInput;
}
