"""Times of one call: on a GPU a replay of a CUDA graph timed by events, on the CPU a call.

K and V are in no cache: on a GPU memory is overwritten before each run, on the CPU each run is
given another copy of them, while code and threads stay as warm as a decode loop keeps them.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

_FLUSH_BYTES = 256 << 20  # more than L2
_COLD_BYTES = 640 << 20  # more than any cache of a CPU in sight, as in pando bench
_WARM_UPS = 3
_ENQUEUING_CYCLES = 1 << 20  # about half a millisecond


@dataclass(frozen=True)
class Timing:
    median: float
    min: float
    max: float
    count: int


def summary(us: list[float]) -> Timing:
    return Timing(statistics.median(us), min(us), max(us), len(us))


class Timer:
    """Measures calls that enqueue work on the current stream, or that return when it is done."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._flush_with = 0
        if device == "cuda":
            self._memory = torch.empty(_FLUSH_BYTES, dtype=torch.uint8, device="cuda")

    def copies(self, kv_bytes: int) -> int:
        """How many copies of K and V of so many bytes the runs should take in turn."""
        return 1 if self.device == "cuda" else -(-_COLD_BYTES // max(kv_bytes, 1))

    def prepare(self, call: Callable[[], object]) -> Callable[[], object]:
        """Warms a call up; on a GPU captures it in a graph, and returns the replay."""
        if self.device == "cpu":
            call()
            return call
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        # NCCL asks for its events from a thread of its own, which a capture of all would forbid.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            call()

        def replay(_keeps: object = call) -> None:  # the graph does not own the call's tensors
            graph.replay()

        replay()
        torch.cuda.synchronize()
        return replay

    def run(
        self, prepared: list[Callable[[], object]], count: int, seconds: float = math.inf
    ) -> Timing:
        """``count`` runs, or as many as fit into ``seconds``, but 3 or more."""
        us, end = [], time.monotonic() + seconds
        while len(us) < count and (len(us) < 3 or time.monotonic() < end):
            us.append(self.one(prepared[len(us) % len(prepared)]))
        return summary(us)

    def one(
        self, prepared: Callable[[], object], before: Callable[[], object] | None = None
    ) -> float:
        """Microseconds of one run, which begins when ``before`` has ended."""
        if self.device == "cpu":
            if before is not None:
                before()
            start = time.perf_counter()
            prepared()
            return 1e6 * (time.perf_counter() - start)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        if before is not None:  # the GPU waits until all is enqueued, and then for no host
            torch.cuda._sleep(_ENQUEUING_CYCLES)
        self._flush_with = (self._flush_with + 1) % 256
        self._memory.fill_(self._flush_with)
        if before is not None:
            before()
        begin.record()
        prepared()
        end.record()
        end.synchronize()
        return 1e3 * begin.elapsed_time(end)
