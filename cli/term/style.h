// Colours, and only where a person looks: on a terminal that wants them.
#pragma once

#include <fmt/format.h>

#include <cstdint>
#include <string>
#include <string_view>

namespace pando::term {

/// Wraps text in terminal colours, or leaves it as it is.
class Style {
 public:
  /// Colours when `stream` (1: stdout, 2: stderr) is a terminal, NO_COLOR is unset and TERM is not
  /// "dumb".
  static Style of(int stream);
  static Style plain() { return Style(false); }
  static Style coloured() { return Style(true); }

  std::string bold(std::string_view text) const { return wrap("1", text); }
  std::string dim(std::string_view text) const { return wrap("2", text); }
  std::string good(std::string_view text) const { return wrap("32", text); }
  std::string bad(std::string_view text) const { return wrap("1;31", text); }
  std::string note(std::string_view text) const { return wrap("33", text); }
  bool has_colour() const { return colour_; }

 private:
  explicit Style(bool colour) : colour_(colour) {}
  std::string wrap(const char* code, std::string_view text) const {
    return colour_ ? fmt::format("\x1b[{}m{}\x1b[0m", code, text) : std::string(text);
  }
  bool colour_;
};

/// "1,234,567".
std::string grouped(int64_t value);
/// "512 B", "33.6 MB".
std::string bytes_text(double bytes);
/// "12.3 µs", "4.56 ms".
std::string time_text(double us);

}  // namespace pando::term
