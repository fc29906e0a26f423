// What the program's parser and commands refuse that they could take for something else.
#include <filesystem>
#include <fstream>

#include "cli/program.h"

namespace pando {
namespace {

TEST_F(Program, calibrate_says_that_a_file_is_not_json) {
  for (const std::string text : {"", "\x7f\x45\x4c\x46"}) {
    std::ofstream(dir_ / "record") << text;
    expect_refused("calibrate --from " + (dir_ / "record"), "from: got text that is not JSON");
  }
}

}  // namespace
}  // namespace pando
