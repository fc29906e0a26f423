#include "term/style.h"

#include <unistd.h>

#include <cstdlib>

namespace pando::term {
namespace {

/// Three significant digits.
std::string three_digits(double value) {
  return fmt::format("{:.{}f}", value, value < 10 ? 2 : value < 100 ? 1 : 0);
}

}  // namespace

Style Style::of(int stream) {
  const char* terminal = std::getenv("TERM");
  const bool dumb = terminal == nullptr || std::string_view(terminal) == "dumb";
  return Style(isatty(stream) != 0 && !dumb && std::getenv("NO_COLOR") == nullptr);
}

std::string grouped(int64_t value) {
  std::string digits = fmt::format("{}", value);
  for (auto at = static_cast<int64_t>(digits.size()) - 3; at > (value < 0 ? 1 : 0); at -= 3) {
    digits.insert(at, 1, ',');
  }
  return digits;
}

std::string bytes_text(double bytes) {
  for (const char* unit : {"B", "kB", "MB"}) {
    if (bytes < 1000) return fmt::format("{} {}", three_digits(bytes), unit);
    bytes /= 1000;
  }
  return fmt::format("{} GB", three_digits(bytes));
}

std::string time_text(double us) {
  if (us < 1000) return fmt::format("{} µs", three_digits(us));
  if (us < 1e6) return fmt::format("{} ms", three_digits(us / 1e3));
  return fmt::format("{} s", three_digits(us / 1e6));
}

}  // namespace pando::term
