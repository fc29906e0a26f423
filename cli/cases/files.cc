#include "cases/files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <utility>

#include "core/check.h"

namespace pando::cases {

namespace {

/// Where symbolic links lead, be there a file or not yet.
std::string followed(std::filesystem::path path) {
  while (true) {
    std::error_code error;
    const std::filesystem::path target = std::filesystem::read_symlink(path, error);
    if (error) return path.string();
    path = path.parent_path() / target;
  }
}

}  // namespace

AtomicFile::AtomicFile(std::string path) : path_(std::move(path)) {
  struct stat old {};
  const bool exists = stat(path_.c_str(), &old) == 0;
  if (!exists && errno != ENOENT) fail_errno("create");
  if (exists && !S_ISREG(old.st_mode)) {
    file_.reset(std::fopen(path_.c_str(), "wb"));
    if (!file_) fail_errno("open");
    return;
  }
  target_ = followed(path_);
  temporary_ = target_ + ".XXXXXX";
  const int descriptor = mkstemp(temporary_.data());
  if (descriptor < 0) {
    temporary_.clear();
    fail_errno("create");
  }
  // mkstemp makes the file private; the result should be as readable as the old one, or as any
  // other.
  const mode_t mask = umask(0);
  umask(mask);
  fchmod(descriptor, exists ? old.st_mode & 0777 : 0666 & ~mask);
  file_.reset(fdopen(descriptor, "wb"));
}

AtomicFile::~AtomicFile() {
  file_.reset();
  if (!temporary_.empty()) std::remove(temporary_.c_str());
}

void AtomicFile::fail_errno(const char* action) {
  fail(ErrorCode::kIo, "{}: cannot {}: {}", path_, action, std::strerror(errno));
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  if (bytes.empty()) return;
  if (std::fwrite(bytes.data(), 1, bytes.size(), file_.get()) != bytes.size()) fail_errno("write");
}

void AtomicFile::write(std::string_view text) { write(std::as_bytes(std::span(text))); }

void AtomicFile::commit() {
  if (std::fflush(file_.get()) != 0) fail_errno("write");
  file_.reset();
  if (temporary_.empty()) return;
  if (std::rename(temporary_.c_str(), target_.c_str()) != 0) fail_errno("create");
  temporary_.clear();
}

Buffer read_file(const std::string& path) {
  const int descriptor = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) fail(ErrorCode::kIo, "{}: cannot open: {}", path, std::strerror(errno));
  struct Close {
    int descriptor;
    ~Close() { close(descriptor); }
  } const closer{descriptor};
  struct stat info {};
  if (fstat(descriptor, &info) != 0 || !S_ISREG(info.st_mode)) {
    fail(ErrorCode::kIo, "{}: not a regular file", path);
  }
  Buffer bytes(info.st_size);
  size_t got = 0;
  while (got < bytes.size()) {
    const ssize_t n = read(descriptor, bytes.data() + got, bytes.size() - got);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      fail(ErrorCode::kIo, "{}: read {} of {} bytes: {}", path, got, bytes.size(),
           n < 0 ? std::strerror(errno) : "the file became shorter");
    }
    got += static_cast<size_t>(n);
  }
  return bytes;
}

}  // namespace pando::cases
