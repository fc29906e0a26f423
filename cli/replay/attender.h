// Where a replay's plans run: on the CPU, or on a CUDA device with a copy of the KV memory.
#pragma once

#include <memory>
#include <vector>

#include "cases/buffer.h"
#include "pando/plan.h"
#include "replay/kv_memory.h"
#include "replay/options.h"

namespace pando::replay {

/// A plan with the memory that its results take.
struct Side {
  PlanOptions options;
  Plan plan;
  cases::Buffer out;
  std::vector<float> lse;
  cases::Buffer workspace;  ///< of the CPU
};

/// What one step attends with.
struct StepInputs {
  const cases::Buffer& q;
  std::span<const int32_t> page_ids;
};

class Attender {
 public:
  virtual ~Attender() = default;
  virtual DeviceProfile profile() const = 0;
  /// Threads, or thread blocks.
  virtual int32_t workers() const = 0;
  /// "AVX3+AMX", or "CUDA".
  virtual std::string name() const = 0;
  /// Before the attends of a step: not timed.
  virtual void begin_step(const StepInputs& inputs) = 0;
  /// Computes out and lse of a side; returns how long attend took, in microseconds.
  virtual double attend(Side& side, const StepInputs& inputs) = 0;
};

/// For the backend of `options`; `memory` must outlive it.
std::unique_ptr<Attender> make_attender(const ReplayOptions& options, KvMemory& memory);
std::unique_ptr<Attender> make_cuda_attender(const ReplayOptions& options, KvMemory& memory);

}  // namespace pando::replay
