// Ring<Stages>: shared memory slots between one producer and several consumers; Signal: what thread
// blocks of a cluster tell each other. The only code that knows about mbarrier phases.
#pragma once

#include <cstdint>
#include <cuda/ptx>

#include "cuda/ptx/cluster.cuh"
#include "cuda/ptx/cp_async.cuh"

namespace pando::cuda {

/// Barriers of a ring, in shared memory.
template <int Stages>
struct RingBarriers {
  uint64_t full[Stages];
  uint64_t empty[Stages];

  /// By one thread, before anybody uses the ring.
  __device__ void init(uint32_t producers, uint32_t consumers) {
    for (int stage = 0; stage < Stages; ++stage) {
      ::cuda::ptx::mbarrier_init(&full[stage], producers);
      ::cuda::ptx::mbarrier_init(&empty[stage], consumers);
    }
  }
};

/// A place in the ring; producer and consumers each advance their own in the same order.
template <int Stages>
class RingCursor {
 public:
  __device__ explicit RingCursor(RingBarriers<Stages>& barriers) : barriers_(&barriers) {}
  /// At the slot of the `nth` filling, counted from 0.
  __device__ RingCursor(RingBarriers<Stages>& barriers, int32_t nth)
      : barriers_(&barriers), stage_(nth % Stages), phase_(nth / Stages % 2) {}

  __device__ int stage() const { return stage_; }

  /// Producer: waits until the slot is free.
  __device__ void wait_empty() const { wait(&barriers_->empty[stage_], phase_ ^ 1); }
  /// Producer: announces `bytes` of asynchronous copies into the slot.
  __device__ void expect(uint32_t bytes) const {
    ::cuda::ptx::mbarrier_arrive_expect_tx(::cuda::ptx::sem_release, ::cuda::ptx::scope_cta,
                                           ::cuda::ptx::space_shared, &barriers_->full[stage_],
                                           bytes);
  }
  /// Producer: says that its own writes into the slot are done.
  __device__ void fill() const { ::cuda::ptx::mbarrier_arrive(&barriers_->full[stage_]); }
  /// Producer: the same, once this thread's cp.async so far are complete.
  __device__ void fill_when_copied() const {
    ptx::cp_async_mbarrier_arrive(&barriers_->full[stage_]);
  }
  __device__ uint64_t* full_barrier() const { return &barriers_->full[stage_]; }

  /// Consumer: waits until the slot is filled.
  __device__ void wait_full() const { wait(&barriers_->full[stage_], phase_); }
  /// Consumer: gives the slot back; by one thread of each consumer.
  __device__ void release() const { ::cuda::ptx::mbarrier_arrive(&barriers_->empty[stage_]); }

  __device__ void advance() {
    if (++stage_ == Stages) {
      stage_ = 0;
      phase_ ^= 1;
    }
  }

 private:
  __device__ static void wait(uint64_t* barrier, uint32_t phase) {
    while (!::cuda::ptx::mbarrier_try_wait_parity(barrier, phase)) {
    }
  }

  RingBarriers<Stages>* barriers_;
  int stage_ = 0;
  uint32_t phase_ = 0;
};

/// What happens once in a launch, in shared memory: as many have come as it was made for, and so
/// have the bytes that they announced.
class Signal {
 public:
  /// By one thread, before anybody uses it.
  __device__ void init(uint32_t comers) { ::cuda::ptx::mbarrier_init(&barrier_, comers); }
  /// Comes to the same signal of another thread block of the cluster: this one has read what that
  /// one waits to write to.
  __device__ void come_to(uint32_t rank) { ptx::mbarrier_arrive_in(in(rank)); }
  /// Comes to it, and announces `bytes` of asynchronous stores.
  __device__ void expect(uint32_t bytes) {
    ::cuda::ptx::mbarrier_arrive_expect_tx(::cuda::ptx::sem_release, ::cuda::ptx::scope_cta,
                                           ::cuda::ptx::space_shared, &barrier_, bytes);
  }
  /// That of another thread block, for stores to complete.
  __device__ uint32_t in(uint32_t rank) const { return ptx::in_thread_block(&barrier_, rank); }
  __device__ void wait() {
    while (!::cuda::ptx::mbarrier_try_wait_parity(&barrier_, 0u)) {
    }
  }

 private:
  uint64_t barrier_;
};

}  // namespace pando::cuda
