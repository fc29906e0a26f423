#include "term/progress.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

#include "term/style.h"

namespace pando::term {

Progress::Progress(int64_t total)
    : total_(std::max<int64_t>(total, 1)), visible_(isatty(STDERR_FILENO) != 0) {}

void Progress::start(std::string_view what) {
  if (!visible_) return;
  constexpr int64_t kWidth = 24;
  const int64_t filled = kWidth * done_ / total_;
  std::string bar;
  for (int64_t i = 0; i < kWidth; ++i) bar += i < filled ? "█" : "░";
  fmt::print(stderr, "\r\x1b[2K{} {}/{}  {:.60}", bar, done_, total_, what);
  std::fflush(stderr);
  shown_ = true;
}

void Progress::clear() {
  if (!shown_) return;
  fmt::print(stderr, "\r\x1b[2K");
  std::fflush(stderr);
  shown_ = false;
}

}  // namespace pando::term
