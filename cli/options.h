// Options of which the parser alone takes more than is meant.
#pragma once

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdint>
#include <cstdlib>
#include <string>

#include "core/check.h"

namespace pando::cli {

/// An option of text. To the commands an empty one says that none was given: it is refused here.
inline CLI::Option* add_text(CLI::App* command, const std::string& name, std::string& value,
                             const char* what, const char* want) {
  return command->add_option(name, value, what)->check([name, want](const std::string& text) {
    require(!text.empty(), "{}: got \"\", want {}", name.substr(name.find_first_not_of('-')), want);
    return std::string();
  });
}

/// The parser alone takes -1 for 2^64 - 1, and all that is larger too.
inline CLI::Option* add_seed(CLI::App* command, uint64_t& seed, const char* what) {
  return command->add_option("--seed", seed, what)->check([](const std::string& text) {
    errno = 0;
    std::strtoull(text.c_str(), nullptr, 0);
    require(errno != ERANGE && text.find('-') == std::string::npos,
            "seed: got {}, want a whole number in [0, 2^64 - 1]", text);
    return std::string();
  });
}

}  // namespace pando::cli
