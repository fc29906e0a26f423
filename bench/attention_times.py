"""What attention takes in a decode step of a model of Transformers, on the device itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
import torch
from transformers import AttentionInterface
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

#: Long enough for the host to enqueue the attention of a layer behind it.
SLEEP_CYCLES = 1_000_000


class AttentionTimes:
    """Times each layer's attention in the decode step number ``step`` of ``rows`` sequences.

    It stands in for the attention that is registered by a name, within a ``with`` block. On CUDA
    each call waits on the device until the host has enqueued it, so that the time between its
    events is that of its kernels, after those of all other layers have used the caches.
    """

    def __init__(self, name: str, rows: int, layers: int, step: int) -> None:
        if name not in ALL_ATTENTION_FUNCTIONS:  # later versions have one name for both
            name = name.removeprefix("paged|")
        self._name, self._rows, self._layers, self._step = name, rows, layers, step
        self._calls = 0
        self._times: list[Callable[[], float]] = []

    def __enter__(self) -> AttentionTimes:
        self._attention = ALL_ATTENTION_FUNCTIONS[self._name]
        AttentionInterface.register(self._name, self._timed)
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        AttentionInterface.register(self._name, self._attention)

    def us(self) -> float | None:
        """Of all layers, each as the median of them; None when there was no such step."""
        if not self._times:
            return None
        times = [of() for of in self._times]
        return round(self._layers * float(np.median(times)), 1)

    def _timed(self, module: Any, query: torch.Tensor, *args: Any, **options: Any) -> Any:
        if query.shape[0] * query.shape[2] != self._rows:
            return self._attention(module, query, *args, **options)
        step, self._calls = self._calls // self._layers, self._calls + 1
        if step != self._step:
            return self._attention(module, query, *args, **options)
        if query.device.type != "cuda":
            start = time.perf_counter()
            result = self._attention(module, query, *args, **options)
            took = 1e6 * (time.perf_counter() - start)
            self._times.append(lambda: took)
            return result
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        torch.cuda._sleep(SLEEP_CYCLES)
        events[0].record()
        result = self._attention(module, query, *args, **options)
        events[1].record()

        def took_us() -> float:
            events[1].synchronize()
            return 1e3 * events[0].elapsed_time(events[1])

        self._times.append(took_us)
        return result
