// Where the thread blocks of a launch run.
#pragma once

#include <cstdint>
#include <vector>

namespace pando::cuda {

/// Thread blocks that follow each other run beside each other in a launch without clusters;
/// clusters that follow each other are dealt to all parts of the chip in turn. For each thread
/// block of a launch with clusters, the number of that which a launch without them puts in its
/// place: clusters stay clusters. Their own numbers where that is not so, or there are no clusters.
/// Runs on the current device and waits for it.
std::vector<int32_t> find_placement(int thread_blocks);

}  // namespace pando::cuda
