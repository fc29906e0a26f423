// The built program, run as a user runs it.
#pragma once

#include <gtest/gtest.h>
#include <sys/wait.h>

#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "cli/scratch_dir.h"

namespace pando {

struct Ran {
  int exit_code;
  std::string out;
  std::string err;
};

inline std::string text_of(const std::string& path) {
  std::ifstream in(path);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

class Program : public testing::Test {
 protected:
  Ran run(const std::string& arguments) const {
    const ScratchDir streams;
    // On machines with a GPU too, these are tests of the CPU backend.
    const std::string command = "CUDA_VISIBLE_DEVICES= " + std::string(PANDO_PROGRAM) + " " +
                                arguments + " > " + (streams / "out") + " 2> " + (streams / "err");
    const int status = std::system(command.c_str());
    return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, text_of(streams / "out"),
            text_of(streams / "err")};
  }

  /// Bad input: exit code 2, a message that names what is wrong, nothing on stdout.
  void expect_refused(const std::string& arguments, const std::string& names) const {
    const Ran ran = run(arguments);
    EXPECT_EQ(ran.exit_code, 2) << arguments;
    EXPECT_NE(ran.err.find(names), std::string::npos) << arguments << ": " << ran.err;
    EXPECT_EQ(ran.out, "") << arguments;
  }

  nlohmann::json json(const std::string& arguments) const {
    const Ran ran = run(arguments);
    EXPECT_EQ(ran.exit_code, 0) << arguments << ": " << ran.err;
    return nlohmann::json::parse(ran.out);
  }

  std::string make_case(const std::string& options = "--batch 4 --prefix 96 --suffix 16") const {
    EXPECT_EQ(run("gen " + file() + " " + options).exit_code, 0);
    return file();
  }
  std::string file() const { return dir_ / "case.safetensors"; }

  ScratchDir dir_;
};

}  // namespace pando
