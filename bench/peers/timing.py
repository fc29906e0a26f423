"""Times of one call: on a GPU a replay of a CUDA graph timed by events, on the CPU a call.

Before each run memory is overwritten, so that K and V are not in any cache.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

_FLUSH_BYTES = {"cuda": 256 << 20, "cpu": 640 << 20}  # more than the last cache
_WARM_UPS = 3


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
            self._memory = torch.empty(_FLUSH_BYTES["cuda"], dtype=torch.uint8, device="cuda")
        else:
            self._bytes = np.empty(_FLUSH_BYTES["cpu"], np.uint8)

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
        with torch.cuda.graph(graph):
            call()

        def replay(_keeps: object = call) -> None:  # the graph does not own the call's tensors
            graph.replay()

        replay()
        torch.cuda.synchronize()
        return replay

    def run(self, prepared: Callable[[], object], count: int, seconds: float = math.inf) -> Timing:
        """``count`` runs, or as many as fit into ``seconds``, but 3 or more."""
        us, end = [], time.monotonic() + seconds
        while len(us) < count and (len(us) < 3 or time.monotonic() < end):
            us.append(self._one(prepared))
        return summary(us)

    def _one(self, prepared: Callable[[], object]) -> float:
        self._flush_with = (self._flush_with + 1) % 256
        if self.device == "cpu":
            # By one thread of NumPy: the threads of PyTorch would go on spinning into the run.
            self._bytes.fill(self._flush_with)
            start = time.perf_counter()
            prepared()
            return 1e6 * (time.perf_counter() - start)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._memory.fill_(self._flush_with)
        begin.record()
        prepared()
        end.record()
        end.synchronize()
        return 1e3 * begin.elapsed_time(end)
