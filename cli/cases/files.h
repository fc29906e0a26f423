// Files that are read whole, and written whole or not at all where they are regular files.
#pragma once

#include <cstddef>
#include <cstdio>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "cases/buffer.h"

namespace pando::cases {

/// The whole file. Throws kIo.
Buffer read_file(const std::string& path);

/// Writes to a temporary file beside `path`, or beside what a symbolic link there leads to.
/// commit() renames it to that, and permissions stay those of the file before; without commit
/// nothing is left. Pipes, devices and all else that is no regular file are not ours to replace:
/// they are written to as it comes. Every failure throws kIo and names the path.
class AtomicFile {
 public:
  explicit AtomicFile(std::string path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  void commit();

 private:
  struct Close {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };
  [[noreturn]] void fail_errno(const char* action);

  std::string path_;
  std::string target_;     ///< `path_` without symbolic links
  std::string temporary_;  ///< empty: written straight through, or renamed already
  std::unique_ptr<std::FILE, Close> file_;
};

}  // namespace pando::cases
