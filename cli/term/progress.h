// A progress bar on stderr, when stderr is a terminal; silent otherwise.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace pando::term {

class Progress {
 public:
  explicit Progress(int64_t total);
  ~Progress() { clear(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  /// Shows that `what` is under way.
  void start(std::string_view what);
  /// Counts one as done.
  void finish_one() { ++done_; }
  /// Takes the bar away, so that other lines can be printed.
  void clear();

 private:
  int64_t total_;
  int64_t done_ = 0;
  bool visible_;
  bool shown_ = false;
};

}  // namespace pando::term
