// What the program's parser and commands refuse that they could take for something else.
#include <filesystem>
#include <fstream>

#include "cli/program.h"

namespace pando {
namespace {

TEST_F(Program, an_empty_text_is_not_taken_for_an_option_left_out) {
  const std::string gen = "gen " + file() + " ";
  expect_refused("gen ''", "file: got \"\", want the path of a file");
  expect_refused(gen + "--tree ''", "tree: got \"\", want nodes and tokens of each level");
  expect_refused(gen + "--shape ''", "shape: got \"\", want a shape or tree of the table");
  expect_refused(gen + "--kv-dtype ''", "kv-dtype: got \"\", want fp8");
  EXPECT_TRUE(dir_.empty());
  make_case();
  for (const std::string& command :
       {"plan " + file(), std::string("info"), std::string("verify --suite seed"),
        std::string("bench --shapes l3-8"), std::string("bench --plan-only --shapes l3-8")}) {
    expect_refused(command + " --profile ''",
                   "profile: got \"\", want one of cpu, h100, or a file");
  }
  expect_refused("plan ''", "case: got \"\", want the path of a file");
  expect_refused("verify --case ''", "case: got \"\", want the path of a file");
  expect_refused("bench --out ''", "out: got \"\", want the path of a file");
  expect_refused("bench --against ''", "against: got \"\", want the path of a file");
  expect_refused("calibrate --out ''", "out: got \"\", want the path of a file");
  expect_refused("calibrate --from ''", "from: got \"\", want the path of a file");
  expect_refused("replay ''", "trace: got \"\", want the path of a file");
}

TEST_F(Program, a_seed_outside_64_bits_is_refused) {
  for (const std::string& command :
       {"gen " + file(), std::string("verify --suite random"), std::string("replay trace")}) {
    for (const std::string seed : {"-1", "18446744073709551616"}) {
      expect_refused(command + " --seed " + seed, "seed: got " + seed + ", want a whole number");
    }
  }
  EXPECT_EQ(json("gen " + file() + " --batch 1 --seed 18446744073709551615 --json")["seed"],
            uint64_t{18446744073709551615u});
}

TEST_F(Program, gen_refuses_numbers_that_stand_for_nothing) {
  const std::string gen = "gen " + file() + " ";
  expect_refused(gen + "--suffix-min -5", "suffix-min: got -5, want a number in [0, 128]");
  expect_refused(gen + "--suffix-min 129", "suffix-min: got 129, want a number in [0, 128]");
  expect_refused(gen + "--prefix -1", "prefix: got -1, want a number in");
  expect_refused(gen + "--suffix -1", "suffix: got -1, want a number in");
  expect_refused(gen + "--q-heads 0", "q-heads: got 0, want a number in");
  expect_refused(gen + "--kv-heads -8", "kv-heads: got -8, want a number in");
  EXPECT_TRUE(dir_.empty());
}

TEST_F(Program, gen_refuses_sizes_that_fit_nowhere_before_it_makes_tables) {
  const std::string gen = "gen " + file() + " ";
  for (const char* batch : {"2147483647", "100000000"}) {
    expect_refused(gen + "--prefix 8 --suffix 8 --batch " + batch,
                   std::string("batch: got ") + batch);
  }
  expect_refused(gen + "--tree 2147483647:2147483647", "tree: got 2147483647 nodes");
  expect_refused(gen + "--tree 1000000,1000000:1,1", "tree: got 2000000 nodes in levels up to 1");
  expect_refused(gen + "--tree 1000000:1000000", "shape: got 15625000000 page ids");
  expect_refused(gen + "--batch 4096 --q-len 1048576", "shape: got 4294967296 query rows");
  expect_refused(gen + "--batch 2047 --q-len 1048576", "shape: q, K, V and page tables need");
  EXPECT_TRUE(dir_.empty());
}

TEST_F(Program, verify_refuses_a_suite_without_cases) {
  expect_refused("verify --suite random --cases 0", "cases: got 0, want a number in [1, 1000000]");
}

TEST_F(Program, cut_tokens_are_refused_without_batch_invariant) {
  make_case();
  for (const std::string& command : {"plan " + file(), std::string("bench --shapes l3-8")}) {
    expect_refused(command + " --cut-tokens 512", "--cut-tokens requires --batch-invariant");
  }
}

TEST_F(Program, calibrate_says_that_a_file_is_not_json) {
  for (const std::string text : {"", "\x7f\x45\x4c\x46"}) {
    std::ofstream(dir_ / "record") << text;
    expect_refused("calibrate --from " + (dir_ / "record"), "from: got text that is not JSON");
  }
}

}  // namespace
}  // namespace pando
