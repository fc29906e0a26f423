// The built program, run as a user runs it: exit codes, what goes to which stream, what is left.
#include "cli/program.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cases/case_file.h"
#include "cases/files.h"
#include "pando/version.h"

namespace pando {
namespace {

TEST_F(Program, without_a_subcommand_says_what_there_is) {
  const Ran ran = run("");
  EXPECT_EQ(ran.exit_code, 2);
  EXPECT_NE(ran.err.find("SUBCOMMAND"), std::string::npos) << ran.err;
}

TEST_F(Program, help_and_version_succeed) {
  const Ran help = run("--help");
  EXPECT_EQ(help.exit_code, 0);
  for (const char* name :
       {"demo", "info", "plan", "verify", "bench", "calibrate", "gen", "replay"}) {
    EXPECT_NE(help.out.find(name), std::string::npos) << name;
    EXPECT_EQ(run(std::string(name) + " --help").exit_code, 0) << name;
  }
  EXPECT_EQ(run("--version").out, std::string("pando ") + version() + "\n");
}

TEST_F(Program, an_unknown_option_is_bad_input) {
  expect_refused("info --mesure", "--mesure");
  expect_refused("demo 3", "3");
  expect_refused("grow", "grow");
}

TEST_F(Program, a_backend_that_is_not_there_is_refused_with_the_reason) {
  for (const char* command : {"info", "demo", "verify --suite seed", "bench", "calibrate"}) {
    expect_refused(std::string(command) + " --backend cuda", "backend: got \"cuda\", but");
    expect_refused(std::string(command) + " --backend tpu", "backend: got \"tpu\"");
    expect_refused(std::string(command) + " --threads -1", "threads: got -1");
  }
}

TEST_F(Program, info_names_version_backend_and_machine) {
  const nlohmann::json info = json("info --json --threads 1");
  EXPECT_EQ(info["version"], version());
  EXPECT_EQ(info["threads"], 1);
  EXPECT_NE(info["backend"].get<std::string>().find("cpu (auto"), std::string::npos);
  EXPECT_GT(info["profile"]["dram_bytes_per_us"], 0);
  EXPECT_FALSE(info["commit"].get<std::string>().empty());
  EXPECT_NE(run("info --backend cpu").out.find("head_dim"), std::string::npos);
}

TEST_F(Program, demo_shows_a_forest_that_is_shared_and_correct) {
  const Ran ran = run("demo --reps 1");
  EXPECT_EQ(ran.exit_code, 0) << ran.err;
  EXPECT_NE(ran.out.find("shared: read once"), std::string::npos);
  EXPECT_NE(ran.out.find("correct"), std::string::npos);
  EXPECT_EQ(ran.out.find('\x1b'), std::string::npos) << "colour, but not on a terminal";
  EXPECT_EQ(ran.err, "") << "a progress bar, but not on a terminal";
  const nlohmann::json demo = json("demo --reps 1 --json");
  EXPECT_EQ(demo["passed"], true);
  EXPECT_LT(demo["kv_bytes"], demo["unshared_kv_bytes"]);
}

TEST_F(Program, gen_writes_a_case_that_reads_back) {
  make_case("--tree 1,2,6:40,30,9 --dtype fp16 --layout nhd --page-tokens 8 --q-len 2 --window 33");
  const cases::Case problem = cases::read_case(file());
  EXPECT_EQ(problem.tables.sequences(), 6);
  EXPECT_EQ(problem.tables.q_rows(), 12);
  EXPECT_EQ(problem.tables.kv_len, std::vector<int32_t>(6, 79));
  EXPECT_EQ(problem.spec.dtype, DType::kF16);
  EXPECT_EQ(problem.spec.window, 33);
  EXPECT_EQ(problem.order, cases::KvOrder::kNhd);
}

TEST_F(Program, gen_writes_variants_that_verify_takes) {
  make_case("--tree 1,3:40,30 --head-dim 64 --q-len 5 --soft-cap 20 --sinks --draft-trees");
  const cases::Case problem = cases::read_case(file());
  EXPECT_EQ(problem.spec.soft_cap, 20);
  EXPECT_EQ(problem.sinks.size(), 32);
  EXPECT_EQ(problem.tree_mask.size(), 15);
  EXPECT_EQ(run("verify --backend cpu --case " + file()).exit_code, 0);
  expect_refused("gen " + file() + " --soft-cap -1", "soft-cap: got -1, want 0 (no cap)");
  expect_refused("gen " + file() + " --soft-cap 1e-50", "soft-cap: got 1e-50, want 0 or a number");
  expect_refused("gen " + file() + " --draft-trees --q-len 65", "q-len: got 65 beside draft-trees");
  expect_refused("gen " + file() + " --draft-trees --window 3", "window: got 3 beside draft-trees");
}

TEST_F(Program, gen_writes_fp8_that_verify_takes) {
  make_case("--tree 1,3:40,30 --head-dim 64 --kv-dtype fp8");
  const cases::Case problem = cases::read_case(file());
  EXPECT_EQ(problem.spec.dtype, DType::kBF16);
  EXPECT_EQ(problem.kv_dtype(), DType::kE4M3);
  EXPECT_EQ(problem.k_scale.size(), 8);
  EXPECT_EQ(run("verify --backend cpu --case " + file()).exit_code, 0);
  expect_refused("gen " + file() + " --kv-dtype fp16", "kv-dtype: got \"fp16\", want fp8");
  expect_refused("gen " + file() + " --dtype fp8", "dtype: got \"fp8\", want one of");
}

TEST_F(Program, gen_of_the_same_seed_writes_the_same_file) {
  make_case("--suffix 40 --suffix-min 3 --data adversarial --unused mixed --seed 9");
  const std::string first = text_of(file());
  make_case("--suffix 40 --suffix-min 3 --data adversarial --unused mixed --seed 9");
  EXPECT_EQ(first, text_of(file()));
  make_case("--suffix 40 --suffix-min 3 --data adversarial --unused mixed --seed 10");
  EXPECT_NE(first, text_of(file()));
}

TEST_F(Program, gen_takes_shapes_of_the_table) {
  const nlohmann::json made = json("gen " + file() + " --shape tp8 --scale 0.125 --json");
  EXPECT_EQ(made["sequences"], 8);
  EXPECT_EQ(made["kv_heads"], 1);
  EXPECT_EQ(made["tokens"], 8 * (500 + 16));
}

TEST_F(Program, gen_refuses_bad_options_and_writes_nothing) {
  const std::string gen = "gen " + file() + " ";
  expect_refused(gen + "--tree 1,4", "tree: got \"1,4\"");
  expect_refused(gen + "--tree 1,x:3,4", "tree: got \"1,x:3,4\"");
  expect_refused(gen + "--tree 4,2:3,4", "tree: level 1");
  expect_refused(gen + "--tree 1:4 --shape l3-8", "--shape");
  expect_refused(gen + "--tree 1:4 --prefix 7", "--prefix");
  expect_refused(gen + "--scale 0.5", "--scale");
  expect_refused(gen + "--shape l3-9", "l3-9");
  expect_refused(gen + "--shape l3-8 --scale 2", "scale: got 2");
  expect_refused(gen + "--batch -1", "batch: got -1");
  expect_refused(gen + "--dtype int4", "int4");
  expect_refused(gen + "--layout dnh", "layout: got \"dnh\"");
  expect_refused(gen + "--data ones", "data: got \"ones\"");
  expect_refused(gen + "--unused one", "unused: got \"one\"");
  expect_refused(gen + "--page-tokens 12", "page-tokens: got 12");
  expect_refused(gen + "--q-heads 7", "q-heads: got 7");
  expect_refused(gen + "--batch 100000 --suffix 100000", "shape:");
  expect_refused(gen + "--seed abc", "--seed");
  EXPECT_TRUE(dir_.empty());
  expect_refused("gen /nonexistent/x --batch 1", "/nonexistent/x: cannot create");
}

TEST_F(Program, plan_says_what_is_shared_and_why) {
  make_case("--batch 64 --prefix 2048 --suffix 64");
  const Ran ran = run("plan " + file());
  EXPECT_EQ(ran.exit_code, 0) << ran.err;
  EXPECT_NE(ran.out.find("shared: read once"), std::string::npos);
  const nlohmann::json plan = json("plan " + file() + " --json --items");
  EXPECT_EQ(plan["sequences"], 64);
  EXPECT_EQ(plan["decisions"].size(), 1u);
  EXPECT_EQ(plan["decisions"][0]["shared"], true);
  EXPECT_EQ(plan["work_items"].size(), plan["items"].get<size_t>());
  EXPECT_LE(plan["cost"]["predicted_us"], plan["cost"]["predicted_unshared_us"]);
  EXPECT_FALSE(json("plan " + file() + " --json").contains("work_items"));
}

TEST_F(Program, plan_options_change_the_plan) {
  make_case("--batch 64 --prefix 2048 --suffix 64");
  EXPECT_EQ(json("plan " + file() + " --json --sharing none")["decisions"][0]["shared"], false);
  for (const char* profile : {"cpu", "h100"}) {
    const std::string with = "plan " + file() + " --json --profile " + profile;
    EXPECT_EQ(json(with + " --batch-invariant")["batch_invariant"], true);
    EXPECT_EQ(json(with + " --batch-invariant --cut-tokens 1024")["cut_tokens"], 1024);
    EXPECT_EQ(json(with)["cut_tokens"], 0);
  }
  EXPECT_EQ(json("plan " + file() + " --json --threads 1")["workers"], 1);
  EXPECT_GT(json("plan " + file() + " --json --profile h100")["workers"], 100);
  expect_refused("plan " + file() + " --sharing some", "sharing: got \"some\"");
  expect_refused("plan " + file() + " --profile a100", "profile: got \"a100\"");
  expect_refused("plan " + file() + " --profile h100 --threads 2", "threads: got 2");
  expect_refused("plan " + file() + " --batch-invariant --cut-tokens 7", "cut_tokens");
}

TEST_F(Program, a_bad_file_is_refused_by_name) {
  expect_refused("plan " + (dir_ / "absent"), "absent: cannot open");
  std::ofstream(dir_ / "short") << "abc";
  expect_refused("plan " + (dir_ / "short"), "short: got 3 bytes");
  expect_refused("verify --case " + (dir_ / "short"), "short: got 3 bytes");
  make_case();
  std::filesystem::resize_file(file(), std::filesystem::file_size(file()) - 1);
  expect_refused("verify --case " + file(), "case.safetensors: tensor");
}

TEST_F(Program, verify_passes_a_case_file) {
  make_case("--data adversarial --unused mixed");
  const nlohmann::json report = json("verify --json --case " + file());
  EXPECT_EQ(report["passed"], 1);
  EXPECT_LE(report["cases"][0]["max_err"], report["cases"][0]["tolerance"]);
}

TEST_F(Program, verify_refuses_what_the_library_cannot_do) {
  make_case("--head-dim 100");
  expect_refused("verify --case " + file(), "head_dim");
}

TEST_F(Program, verify_reports_suites) {
  const Ran ran = run("verify --suite seed --quick");
  EXPECT_EQ(ran.exit_code, 0) << ran.out;
  EXPECT_NE(ran.out.find("16 of 16 cases passed"), std::string::npos) << ran.out;
  EXPECT_EQ(ran.err, "");
  const Ran verbose = run("verify --suite random --cases 3 --seed 5 -v");
  EXPECT_NE(verbose.out.find("seed7"), std::string::npos);
  expect_refused("verify --suite sead", "suite: got \"sead\"");
  expect_refused("verify --cases -3", "cases: got -3");
  expect_refused("verify --suite seed --case x", "--suite");
}

TEST_F(Program, bench_writes_one_json_line_a_case) {
  const std::string out = dir_ / "bench.jsonl";
  const Ran ran = run("bench --shapes l3-8,tree-8x8 --scale 1/16 --reps 2 --out " + out);
  EXPECT_EQ(ran.exit_code, 0) << ran.err;
  EXPECT_NE(ran.out.find("l3-8"), std::string::npos);
  std::ifstream in(out);
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(nlohmann::json::parse(line));
  ASSERT_EQ(lines.size(), 2u);
  for (const nlohmann::json& line : lines) {
    for (const char* key : {"shape", "device", "date", "commit", "discover_us", "plan_us", "ratio",
                            "bytes", "flops", "roof_us", "pct_roof", "bound"}) {
      EXPECT_TRUE(line.contains(key)) << key;
    }
    EXPECT_EQ(line["scale"], 1.0 / 16);
    EXPECT_EQ(line["command"], "pando bench --shapes l3-8,tree-8x8 --scale 1/16 --reps 2");
    EXPECT_EQ(line["run_us"]["count"], 2);
    EXPECT_LE(line["run_us"]["min"], line["run_us"]["median"]);
    EXPECT_LE(line["max_err"], line["tolerance"]);
  }
  EXPECT_EQ(lines[0]["tokens"], (std::vector<int>{64, 8}));
}

TEST_F(Program, bench_of_fp8_counts_one_byte_an_element) {
  const std::string shape = "bench --backend cpu --json --shapes noshare-16 --scale 1/64 --reps 2";
  const nlohmann::json bf16 = json(shape);
  const nlohmann::json fp8 = json(shape + " --kv-dtype fp8");
  EXPECT_EQ(bf16["kv_dtype"], "bf16");
  EXPECT_EQ(fp8["dtype"], "bf16");
  EXPECT_EQ(fp8["kv_dtype"], "fp8");
  // Of 16 sequences of 128 tokens, K and V, 8 heads of 128.
  EXPECT_EQ(bf16["bytes"].get<int64_t>() - fp8["bytes"].get<int64_t>(), 16 * 128 * 2 * 8 * 128);
  // By the ceilings that each run measured: a busy machine gives two runs two of each.
  for (const nlohmann::json& line : {bf16, fp8}) {
    const auto us_of = [&](const char* work, const char* ceiling) {
      return line[work].get<double>() / (line[ceiling].get<double>() * 1e3);
    };
    const double roof_us =
        std::max(us_of("bytes", "bandwidth_gb_s"), us_of("flops", "peak_gflop_s"));
    EXPECT_NEAR(line["roof_us"].get<double>(), roof_us, 1e-6 * roof_us);
  }
}

TEST_F(Program, bench_times_shapes_at_another_head_dim) {
  const nlohmann::json record =
      json("bench --shapes l3-8 --scale 1/32 --head-dim 256 --reps 2 --threads 1 --json");
  EXPECT_EQ(record["head_dim"], 256);
  EXPECT_LE(record["max_err"], record["tolerance"]);
  const std::string planned = "bench --plan-only --profile h100 --shapes l3-256 --reps 2 --json";
  const nlohmann::json at_128 = json(planned), at_256 = json(planned + " --head-dim 256");
  EXPECT_EQ(at_128["head_dim"], 128);
  EXPECT_EQ(at_256["head_dim"], 256);
  // Twice the bytes and the products.
  EXPECT_GT(at_256["predicted_us"], 1.5 * at_128["predicted_us"].get<double>());
}

TEST_F(Program, bench_makes_batch_invariant_plans) {
  const std::string planned = "bench --plan-only --profile h100 --shapes l3-64 --reps 1 --json";
  const nlohmann::json whole = json(planned), at_512 = json(planned + " --batch-invariant");
  const nlohmann::json at_1024 = json(planned + " --batch-invariant --cut-tokens 1024");
  EXPECT_EQ(whole["cut_tokens"], 0);
  EXPECT_EQ(at_512["cut_tokens"], 512);
  EXPECT_EQ(at_1024["cut_tokens"], 1024);
  EXPECT_LT(at_1024["plan_bytes"], at_512["plan_bytes"]);
  const nlohmann::json record = json(
      "bench --shapes l3-8 --scale 1/4 --batch-invariant --cut-tokens 64 --reps 1 --threads 1 "
      "--json");
  EXPECT_EQ(record["cut_tokens"], 64);
  EXPECT_LE(record["max_err"], record["tolerance"]);
}

TEST_F(Program, bench_refuses_bad_options_and_writes_nothing) {
  const std::string out = " --out " + (dir_ / "bench.jsonl");
  expect_refused("bench --shapes l3-9" + out, "l3-9");
  expect_refused("bench --shapes l3-8 --trees" + out, "--trees");
  expect_refused("bench --seed-sweep --trees" + out, "--seed-sweep");
  expect_refused("bench --scale 2" + out, "scale: got \"2\"");
  expect_refused("bench --scale 1/0" + out, "scale: got \"1/0\"");
  expect_refused("bench --scale 1/2/3" + out, "scale: got \"1/2/3\"");
  expect_refused("bench --reps 0" + out, "reps: got 0");
  expect_refused("bench --page-tokens 48" + out, "page-tokens: got 48");
  expect_refused("bench --dtype fp8" + out, "fp8");
  expect_refused("bench --head-dim 0" + out, "head-dim: got 0");
  expect_refused("bench --plan-only --profile h100 --head-dim 96 --json" + out,
                 "head_dim, dtype: got 96 x bf16, the CUDA backend supports 128 x bf16");
  expect_refused("bench --scale-axes --trees" + out, "--scale-axes");
  expect_refused("bench --profile h100" + out, "profile: got \"h100\", which is for CUDA, but");
  expect_refused("bench --plan-only --against x" + out, "--plan-only");
  expect_refused("bench --plan-only --warm" + out, "--plan-only");
  expect_refused("bench --plan-only --scale 1" + out, "--plan-only");
  expect_refused("bench --shapes l3-8 --batch-invariant --cut-tokens 100 --json" + out,
                 "cut_tokens: got 100");
  expect_refused("bench --plan-only --profile v100" + out, "profile: got \"v100\"");
  expect_refused("bench --plan-only --profile h100 --threads 2" + out, "threads: got 2");
  expect_refused("bench --plan-only --reps 0" + out, "reps: got 0");
  EXPECT_TRUE(dir_.empty());
  expect_refused("bench --out /nonexistent/x", "/nonexistent/x: cannot create");
}

/// The record of one small case, with its time multiplied, in a file of its own.
class BenchAgainst : public Program {
 protected:
  std::string record_times(double factor) {
    nlohmann::json record = json(bench_);
    record["run_us"]["median"] = record["run_us"]["median"].get<double>() * factor;
    return write(record.dump() + "\n");
  }
  std::string write(const std::string& text) {
    std::ofstream(dir_ / "earlier.jsonl") << text;
    return dir_ / "earlier.jsonl";
  }
  const std::string bench_ = "bench --shapes l3-8 --scale 1/32 --reps 3 --threads 1 --json";
};

TEST_F(BenchAgainst, a_slower_case_fails_and_is_named) {
  const std::string earlier = record_times(0.01);
  const Ran ran = run(bench_ + " --against " + earlier);
  EXPECT_EQ(ran.exit_code, 1);
  EXPECT_NE(ran.err.find("l3-8: "), std::string::npos) << ran.err;
  EXPECT_NE(ran.err.find("% slower than"), std::string::npos) << ran.err;
  EXPECT_GT(nlohmann::json::parse(ran.out)["against_ratio"], 1.05);
  const Ran table =
      run("bench --shapes l3-8 --scale 1/32 --reps 3 --threads 1 --against " + earlier);
  EXPECT_EQ(table.exit_code, 1);
  EXPECT_NE(table.out.find("× the earlier time"), std::string::npos) << table.out;
}

TEST_F(BenchAgainst, a_faster_case_passes) {
  const Ran ran = run(bench_ + " --against " + record_times(100));
  EXPECT_EQ(ran.exit_code, 0) << ran.err;
  EXPECT_EQ(ran.err, "");
  EXPECT_LT(nlohmann::json::parse(ran.out)["against_ratio"], 1);
}

TEST_F(BenchAgainst, only_the_same_case_on_the_same_device_counts) {
  for (const auto& [field, other] : {std::pair<std::string, nlohmann::json>{"device", "another"},
                                     {"dtype", "fp32"},
                                     {"threads", 77},
                                     {"cold", false},
                                     {"cut_tokens", 512},
                                     {"tokens", {32, 5}}}) {
    nlohmann::json record = json(bench_);
    record[field] = other;
    const Ran ran = run(bench_ + " --against " + write(record.dump() + "\n"));
    EXPECT_EQ(ran.exit_code, 2) << field;
    EXPECT_NE(ran.err.find("has none of these cases on this device"), std::string::npos) << field;
  }
}

TEST_F(BenchAgainst, a_file_that_holds_no_records_is_refused) {
  expect_refused(bench_ + " --against /nonexistent/x", "/nonexistent/x");
  expect_refused(bench_ + " --against " + write(""), "which is empty");
  expect_refused(bench_ + " --against " + write("{\"run_us\":3}\n"), "against: got line 1 of");
  expect_refused(bench_ + " --against " + write("\n[1]\n"), "against: got line 2 of");
  expect_refused(bench_ + " --against " + write("no json"), "want a record of pando bench");
}

TEST_F(Program, bench_plan_only_times_the_host_for_any_profile) {
  for (const char* profile : {"cpu", "h100"}) {
    const nlohmann::json record = json(
        "bench --plan-only --shapes depth-3 --reps 2 --json --profile " + std::string(profile));
    EXPECT_EQ(record["planned_for"], profile);
    EXPECT_EQ(record["page_ids"], 64 * ((3 * 1365 + 256 + 63) / 64));
    for (const char* key : {"discover_us", "update_us", "plan_us"}) {
      EXPECT_GT(record[key]["median"], 0) << key;
      EXPECT_EQ(record[key]["count"], 2) << key;
    }
    EXPECT_GE(record["predicted_us"], record["roof_us"]);
  }
  const Ran table = run("bench --plan-only --shapes l3-8 --reps 1");
  EXPECT_EQ(table.exit_code, 0) << table.err;
  EXPECT_NE(table.out.find("l3-8"), std::string::npos);
}

TEST_F(Program, replay_decodes_a_trace) {
  std::ofstream(dir_ / "trace.jsonl")
      << R"({"timestamp":0,"input_length":900,"output_length":9,"hash_ids":[1,2]})"
      << "\n"
      << R"({"timestamp":5,"input_length":800,"output_length":9,"hash_ids":[1,3]})"
      << "\n";
  const std::string replay = "replay " + (dir_ / "trace.jsonl");
  const nlohmann::json report = json(replay + " --json --steps 4 --slots 2 --pool-tokens 4096");
  EXPECT_EQ(report["summary"]["steps"], 4);
  EXPECT_FALSE(report.contains("steps"));
  EXPECT_EQ(json(replay + " --json --steps 4 --step-records")["steps"].size(), 4u);
  EXPECT_NE(run(replay + " --steps 2").out.find("oracle: passed"), std::string::npos);
  expect_refused(replay + " --scale 1/x", "scale: got");
  expect_refused(replay + " --slots 0", "slots");
  expect_refused(replay + " --dtype fp8", "fp8");
  expect_refused("replay " + (dir_ / "absent"), "absent");
  std::ofstream(dir_ / "bad.jsonl") << "{\"timestamp\":0}\n";
  expect_refused("replay " + (dir_ / "bad.jsonl"), "bad.jsonl:1:");
}

}  // namespace
}  // namespace pando
