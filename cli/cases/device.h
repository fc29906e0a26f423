// Memory, streams and timing of a CUDA device, without CUDA types. In a build without CUDA
// everything here throws kUnsupported.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "pando/attention.h"
#include "pando/cuda.h"

namespace pando::cases {

/// Memory of the current CUDA device. Every member returns when its work is done.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  explicit DeviceBuffer(size_t bytes);
  /// A copy of what lies in host memory.
  explicit DeviceBuffer(std::span<const std::byte> host);

  std::byte* data() const { return data_.get(); }
  size_t size() const { return bytes_; }

  void fill(int byte);
  /// `count` normal numbers; the same seed gives the same numbers.
  void fill_normal(DType dtype, int64_t count, float sigma, uint64_t seed);
  /// Copies from the host to bytes [offset, offset + from.size()).
  void upload(std::span<const std::byte> from, size_t offset);
  /// Copies bytes [offset, offset + to.size()) to the host.
  void download(std::span<std::byte> to, size_t offset = 0) const;

 private:
  std::shared_ptr<std::byte> data_;
  size_t bytes_ = 0;
};

/// A stream of the current device that does not wait for the default stream.
class DeviceStream {
 public:
  DeviceStream();
  CudaStream get() const { return stream_.get(); }
  void synchronize() const;

 private:
  std::shared_ptr<void> stream_;
};

/// What was enqueued on a stream while it was captured, to be replayed.
class DeviceGraph {
 public:
  DeviceGraph(const DeviceStream& stream, const std::function<void()>& enqueue);
  void launch(const DeviceStream& stream) const;

 private:
  std::shared_ptr<void> graph_;
};

/// Microseconds by events of what `enqueue` enqueues on the stream; returns when it is done.
double time_once(const DeviceStream& stream, const std::function<void()>& enqueue);
/// Microseconds of each of `runs` replays by events; before each the L2 cache is overwritten.
std::vector<double> time_replays(const DeviceGraph& graph, const DeviceStream& stream, int runs,
                                 bool cold);

/// Reads of the same memory, over and over.
struct DeviceReads {
  int64_t bytes;          ///< of one pass; a multiple of 32 KiB
  int32_t passes;         ///< 1 or more
  int32_t thread_blocks;  ///< a multiple of `sharers`
  int32_t sharers;        ///< neighbouring thread blocks that read the same bytes at the same time
};
/// Microseconds by events of each of `runs` replays of such reads, past the L1 caches. The thread
/// blocks together get bytes * passes * sharers.
std::vector<double> time_reads(const DeviceReads& reads, const DeviceStream& stream, int runs);

/// Where one stage of the attend kernel lies in its last launch, in cycles since a thread block
/// began.
struct StageTime {
  std::string stage;
  int64_t min, median, max;  ///< over the consumer warpgroups that met it
};
/// In the order in which a launch meets them. Empty in builds without PANDO_TIMELINE.
std::vector<StageTime> kernel_timeline(int thread_blocks);

}  // namespace pando::cases
