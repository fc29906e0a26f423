// device.h in a build without CUDA.
#include "cases/device.h"
#include "core/check.h"

namespace pando::cases {
namespace {

[[noreturn]] void refuse() { fail(ErrorCode::kUnsupported, "device: {}", cuda_unavailable()); }

}  // namespace

DeviceBuffer::DeviceBuffer(size_t) { refuse(); }
DeviceBuffer::DeviceBuffer(std::span<const std::byte>) { refuse(); }
void DeviceBuffer::fill(int) { refuse(); }
void DeviceBuffer::fill_normal(DType, int64_t, float, uint64_t) { refuse(); }
void DeviceBuffer::upload(std::span<const std::byte>, size_t) { refuse(); }
void DeviceBuffer::download(std::span<std::byte>, size_t) const { refuse(); }
DeviceStream::DeviceStream() { refuse(); }
void DeviceStream::synchronize() const { refuse(); }
DeviceGraph::DeviceGraph(const DeviceStream&, const std::function<void()>&) { refuse(); }
void DeviceGraph::launch(const DeviceStream&) const { refuse(); }
double time_once(const DeviceStream&, const std::function<void()>&) { refuse(); }
std::vector<double> time_replays(const DeviceGraph&, const DeviceStream&, int, bool) { refuse(); }
std::vector<double> time_reads(const DeviceReads&, const DeviceStream&, int) { refuse(); }
std::vector<StageTime> kernel_timeline(int) { refuse(); }

}  // namespace pando::cases
