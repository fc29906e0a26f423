// Files that are read whole, and written whole or not at all.
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

/// Writes to a temporary file beside `path`. commit() renames it to `path`; without commit nothing
/// is left. Every failure throws kIo and names the path.
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
  std::string temporary_;
  std::unique_ptr<std::FILE, Close> file_;
};

}  // namespace pando::cases
