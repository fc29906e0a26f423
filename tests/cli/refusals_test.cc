// What the program's parser and commands refuse that they could take for something else.
#include <filesystem>
#include <fstream>

#include "cli/program.h"

namespace pando {
namespace {

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

TEST_F(Program, calibrate_says_that_a_file_is_not_json) {
  for (const std::string text : {"", "\x7f\x45\x4c\x46"}) {
    std::ofstream(dir_ / "record") << text;
    expect_refused("calibrate --from " + (dir_ / "record"), "from: got text that is not JSON");
  }
}

}  // namespace
}  // namespace pando
