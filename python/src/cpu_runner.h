// The CPU backend as Python holds it: one pool of threads, one call at a time.
#pragma once

#include <memory>
#include <mutex>

#include "binding.h"
#include "pando/cpu.h"

namespace pando::python {

/// Threads that run plans; any number of Python threads may use one.
class CpuRunnerObject : public ffi::Object {
 public:
  explicit CpuRunnerObject(int threads) : threads_(threads) { renew(); }

  /// Runs `work(executor)` while no other call does.
  template <typename Work>
  void run(Work&& work) {
    const std::lock_guard lock(state_->mutex);
    work(state_->executor);
  }

  /// In a process that was forked: threads do not survive a fork, so a new pool takes the place of
  /// the old one, whose memory is left behind since its destructor would wait for them.
  void renew() {
    static_cast<void>(state_.release());
    state_ = std::make_unique<State>(threads_);
  }
  int threads() const { return state_->executor.threads(); }

  static constexpr bool _type_mutable = true;
  TVM_FFI_DECLARE_OBJECT_INFO_FINAL("pando_attn.CpuRunner", CpuRunnerObject, ffi::Object);

 private:
  struct State {
    explicit State(int threads) : executor(threads) {}
    std::mutex mutex;
    CpuExecutor executor;
  };
  int threads_;
  std::unique_ptr<State> state_;
};

class CpuRunner : public ffi::ObjectRef {
 public:
  explicit CpuRunner(ffi::ObjectPtr<CpuRunnerObject> object) : ffi::ObjectRef(std::move(object)) {}
  TVM_FFI_DEFINE_OBJECT_REF_METHODS_NOTNULLABLE(CpuRunner, ffi::ObjectRef, CpuRunnerObject);
};

}  // namespace pando::python
