"""The plans behind shared_prefix_attention: one for each level, whose results are merged."""

from __future__ import annotations

import sys
import threading
from typing import Any, NamedTuple

import numpy as np

from . import _arrays, _native
from ._arguments import FP8
from ._merge import merge_parts
from ._plan import Plan
from ._spec import Spec

_PLAIN = 2  # K and V are [sequences, tokens, kv_heads, head_dim]
_MOST_PAGE_TOKENS = 64
_HOST_DTYPES = (np.float32, np.uint16, np.float16)  # bf16 as bits


#: (name of k_scale, k_scale, name of v_scale, v_scale) of a level whose K and V are fp8.
LevelScales = tuple[str, Any, str, Any]


class LevelsKey(NamedTuple):
    """All that the plans depend on, but for the lengths."""

    sequences: int
    rows_each: int
    q_heads: int
    head_dim: int
    kv_heads: int
    dtype_code: int
    device: str
    shapes: tuple[tuple[int, int], ...]  # (groups, tokens) of each level
    groups: tuple[bytes, ...]
    fp8: tuple[bool, ...]  # whether K and V of each level are
    has_own: bool
    causal: bool
    scale: float | None
    threads: int


class Levels:
    """One plan for each level: the groups of a level are the sequences of its plan."""

    def __init__(self, key: LevelsKey, groups: list[np.ndarray]) -> None:
        self._key = key
        self._lock = threading.Lock()
        self._lens: list[np.ndarray] | None = None
        own = [np.arange(key.sequences + 1, dtype=np.int32)] if key.has_own else []
        self._bounds = [*groups, *own]
        self._plans = [self._plan(tokens, fp8) for (_, tokens), fp8 in zip(key.shapes, key.fp8)]
        self._parts: list[Any] = []

    def _plan(self, tokens: int, fp8: bool) -> Plan:
        key = self._key
        spec = Spec(
            page_tokens(tokens),
            key.q_heads,
            key.kv_heads,
            key.head_dim,
            key.dtype_code,
            key.scale,
            causal=False,  # what rows see of a level comes as ranges
            kv_code=FP8 if fp8 else None,
        )
        # Groups of a level have nothing in common.
        return Plan(spec, share="none", device=key.device, threads=key.threads)

    def _update(self, lens: list[np.ndarray]) -> None:
        if self._lens is not None and all(map(np.array_equal, lens, self._lens)):
            return
        self._lens = None
        ends = self._visible_ends(lens) if self._key.causal else None
        for i, (groups, tokens) in enumerate(self._key.shapes):
            pages = tokens // self._plans[i].page_tokens
            visible = None
            if ends is not None and (ends[i] < self._of_sequences(i, lens[i])[:, None]).any():
                visible = np.zeros((ends[i].size, 2), np.int32)
                visible[:, 1] = ends[i].reshape(-1)
            self._plans[i].update(
                self._bounds[i] * np.int32(self._key.rows_each),
                lens[i],
                None,
                np.arange(groups * pages, dtype=np.int32).reshape(groups, pages),
                visible=visible,
            )
        self._lens = [array.copy() for array in lens]

    def _of_sequences(self, level: int, per_group: np.ndarray) -> np.ndarray:
        return np.repeat(per_group, np.diff(self._bounds[level]))

    def _visible_ends(self, lens: list[np.ndarray]) -> list[np.ndarray]:
        """For each level, how many of its tokens each row sees: ``[B, q_len]``."""
        by_level = [self._of_sequences(i, per_group) for i, per_group in enumerate(lens)]
        rows = np.arange(self._key.rows_each) + 1 - self._key.rows_each
        left = np.stack(by_level).sum(0, dtype=np.int64)[:, None] + rows
        ends = []
        for level in by_level:
            ends.append(np.clip(left, 0, level[:, None]))
            left = left - level[:, None]
        return ends

    def attend(
        self,
        q: Any,
        kvs: list[tuple[str, Any, str, Any]],
        scales: list[LevelScales | None],
        lens: list[np.ndarray],
        out: Any,
        lse: Any,
        return_lse: bool,
    ) -> Any:
        """What shared_prefix_attention returns."""
        key = self._key
        code = key.dtype_code
        kind = _arrays.kind_of("q", q)
        result = kind.like(q) if out is None else out
        write = (
            kind.target(result, code)
            if out is None
            else _arrays.kind_of("out", out).write("out", out, code)
        )
        result_lse = write_lse = None
        if lse is not None:
            result_lse, write_lse = lse, _arrays.kind_of("lse", lse).write("lse", lse, 0)
        elif return_lse:
            result_lse = kind.lse_like(q)
            write_lse = kind.target(result_lse, 0)
        read = [
            (_read(kv, FP8 if fp8 else code), None if given is None else _read(given, 0))
            for kv, fp8, given in zip(kvs, key.fp8, scales)
        ]
        read_q = kind.read("q", q, code)
        stream = kind.stream(q) if key.device != "cpu" else _arrays.FRAMEWORKS_STREAM
        with self._lock:
            self._update(lens)
            if len(self._plans) == 1:
                self._run(0, read_q, *read[0], write, write_lse, stream, kind.wait)
            else:
                # Levels do not see these, which the merge alone writes.
                written = [("out", write), ("lse", write_lse)]
                inputs = [("q", read_q)]
                for (k_name, k, v_name, v), _ in read:
                    inputs += [(k_name, k), (v_name, v)]
                for to in written[: 1 + (write_lse is not None)]:
                    for given in inputs:
                        _native.check_apart(*to, *given)
                parts, lses = self._room(q)
                for i, level in enumerate(read):
                    self._run(i, read_q, *level, parts[i], lses[i], stream, kind.wait)
                merge_parts(parts, lses, write, write_lse, key.dtype_code, key.device, stream)
        if out is None:
            result = kind.give(result, q)
        if result_lse is None:
            return result
        return result, result_lse if lse is not None else kind.give(result_lse, q)

    def _run(
        self,
        i: int,
        q: Any,
        kv: tuple[str, Any, str, Any],
        scales: LevelScales | None,
        out: Any,
        lse: Any,
        stream: int,
        wait: bool,
    ) -> None:
        plan = self._plans[i]
        k_name, k, v_name, v = kv
        ks_name, k_scale, vs_name, v_scale = scales or ("k_scale", None, "v_scale", None)
        try:
            _native.attend(
                plan._handle,
                plan._cpu,
                q,
                k,
                v,
                out,
                lse,
                None,  # no sinks
                k_scale,
                v_scale,
                _PLAIN,
                k_name,
                v_name,
                True,
                stream,
                wait,
            )
        except (BufferError, RuntimeError):
            given = {"q": q, k_name: k, v_name: v, ks_name: k_scale, vs_name: v_scale}
            _arrays.check_exports({**given, "out": out, "lse": lse})
            raise

    def _room(self, q: Any) -> tuple[Any, Any]:
        """Where the parts go, ``[levels, rows, q_heads, head_dim]``, and their LSEs."""
        key = self._key
        shape = (len(self._plans), key.sequences * key.rows_each, key.q_heads, key.head_dim)
        if key.device != "cpu":
            torch = sys.modules.get("torch")
            if torch is None or not isinstance(q, torch.Tensor):
                raise NotImplementedError(
                    "q: on CUDA, levels are merged for tensors of PyTorch only; want one of these"
                )
            return (
                torch.empty(shape, dtype=q.dtype, device=q.device),
                torch.empty(shape[:-1], dtype=torch.float32, device=q.device),
            )
        if not self._parts:
            self._parts = [
                np.empty(shape, _HOST_DTYPES[key.dtype_code]),
                np.empty(shape[:-1], "f4"),
            ]
        return self._parts[0], self._parts[1]


def _read(pair: tuple[str, Any, str, Any], code: int) -> tuple[str, Any, str, Any]:
    """K and V, or their scales, as the library reads them."""
    a, x, b, y = pair
    return a, _arrays.kind_of(a, x).read(a, x, code), b, _arrays.kind_of(b, y).read(b, y, code)


def page_tokens(tokens: int) -> int:
    """The largest page that divides so many tokens."""
    largest = tokens & -tokens
    return min(largest, _MOST_PAGE_TOKENS) if largest else 1
