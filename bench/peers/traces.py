"""Decode steps of a public trace of requests, at their real lengths."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from .workloads import Pages, Shape

BLOCK = 512  #: tokens that one hash id of a trace stands for


@dataclasses.dataclass(frozen=True)
class TraceStep(Shape):
    """One step of requests that follow each other in a Mooncake trace, each with half of its answer
    decoded. Equal hash ids at equal places from the start are the same tokens, as the prefix cache
    of an engine has it; a last block that is not full is a request's own."""

    trace: str = ""  #: path of the file
    first: int = 0  #: request of the trace

    def fields(self) -> dict[str, Any]:
        made = super().fields()
        for key in ("nodes", "tokens"):
            del made[key]
        made["trace"] = Path(self.trace).name
        made |= {"context_tokens": self.context_tokens, "unique_tokens": self.unique_tokens}
        return made | {"longest": int(self.lengths.max())}

    @functools.cached_property
    def sequences(self) -> list[np.ndarray]:
        """The tokens of each sequence, numbered over all of them."""
        with open(self.trace) as file:
            lines = [line for i, line in enumerate(file) if 0 <= i - self.first < self.batch]
        known: dict[tuple[int, int], tuple[int, int]] = {}  # (node above, hash id): node, tokens
        made, used = [], 0
        for request in map(json.loads, lines):
            node, parts = -1, []
            full = min(request["input_length"] // BLOCK, len(request["hash_ids"]))
            for hash_id in request["hash_ids"][:full]:
                if (node, hash_id) not in known:
                    known[node, hash_id] = (len(known), used)
                    used += BLOCK
                node, begin = known[node, hash_id]
                parts.append(np.arange(begin, begin + BLOCK))
            own = request["input_length"] - full * BLOCK + max(1, request["output_length"] // 2)
            parts.append(np.arange(used, used + own))
            used += own
            made.append(np.concatenate(parts))
        return made

    @functools.cached_property
    def lengths(self) -> np.ndarray:
        return np.array([len(tokens) for tokens in self.sequences])

    @functools.cached_property
    def unique_tokens(self) -> int:
        return 1 + max(int(tokens[-1]) for tokens in self.sequences)

    @property
    def shares(self) -> bool:
        return self.unique_tokens < self.context_tokens

    def page_tables(self, page_tokens: int, seed: int = 0) -> Pages:
        """Pages that hold the same tokens are one page; rows are as wide as the longest needs."""
        widths = -(-self.lengths // page_tokens)
        table = np.zeros((self.batch, widths.max()), np.int64)
        known: dict[tuple[int, int], int] = {}
        slots = []
        for row, tokens in zip(table, self.sequences):
            for i, begin in enumerate(range(0, len(tokens), page_tokens)):
                held = tokens[begin : begin + page_tokens]
                page = known.setdefault((int(held[0]), len(held)), len(known))
                if page == len(slots):
                    slots.append(np.pad(held, (0, page_tokens - len(held)), constant_values=-1))
                row[i] = page
        order = np.random.default_rng(seed).permutation(len(slots))
        shuffled = np.empty((len(slots), page_tokens), np.int64)
        shuffled[order] = np.stack(slots)
        return Pages(order[table].astype(np.int32), shuffled)


def steps(path: str, count: int, batch: int, q_heads: int = 32, kv_heads: int = 8) -> list[Shape]:
    """``count`` steps of ``batch`` requests each, evenly over the file. Raises ValueError."""
    with open(path) as file:
        requests = sum(1 for _ in file)
    if batch * count > requests or batch < 1 or count < 1:
        raise ValueError(f"trace: got {count} steps of {batch}, want no more than {requests} lines")
    name = Path(path).stem.removesuffix("_trace")
    places = [i * (requests - batch) // max(count - 1, 1) for i in range(count)]
    return [
        TraceStep(f"{name}-{first}", q_heads, kv_heads, (batch,), (0,), trace=path, first=first)
        for first in places
    ]
