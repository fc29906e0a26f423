"""Attention in fp64, the shortest code that is obviously right, and the tolerance of results."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np

NUMPY_DTYPES = {
    "fp32": np.dtype(np.float32),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "fp16": np.dtype(np.float16),
}
# Distance from 1 to the next larger number.
EPSILON = {"fp32": 2.0**-23, "bf16": 2.0**-7, "fp16": 2.0**-10}


@dataclass
class Answer:
    """What attention should give: fp64, and with the roundings that no implementation can avoid."""

    out: np.ndarray
    lse: np.ndarray
    rounded: np.ndarray

    def check(self, out, lse=None, dtype: str = "fp32", roundings: int = 1) -> None:
        out = np.asarray(out).astype(np.float64).reshape(self.out.shape)
        seen = np.isfinite(self.lse)
        largest_lse = np.abs(self.lse[seen]).max(initial=0)
        floor = np.abs(self.out).max(initial=0) * (
            EPSILON[dtype] * roundings + 2.0**-23 * (8 + largest_lse)
        )
        allowed = max(2 * np.abs(self.rounded - self.out).max(initial=0), floor)
        assert np.abs(out - self.out).max(initial=0) <= allowed
        if lse is not None:
            lse = np.asarray(lse).astype(np.float64).reshape(self.lse.shape)
            assert (lse[~seen] == -np.inf).all() and np.isfinite(lse[seen]).all()
            allowed = max(1, largest_lse) * (EPSILON[dtype] if dtype != "fp32" else 8 * 2.0**-23)
            assert np.abs(lse[seen] - self.lse[seen]).max(initial=0) <= allowed


def rows(q, k, v, visible, scale=None, soft_cap=0, sinks=None) -> Answer:
    """Rows ``q [n, q_heads, d]`` over ``k, v [tokens, kv_heads, d]``; row i sees visible[i], a
    range or an array of positions."""
    dtype = q.dtype
    n, q_heads, d = q.shape
    group = q_heads // k.shape[1]
    q64, k64, v64 = (x.astype(np.float64) for x in (q, k, v))
    scale = 1 / np.sqrt(d) if scale is None else scale
    answer = Answer(np.zeros(q.shape), np.full((n, q_heads), -np.inf), np.zeros(q.shape))
    for i, sees in enumerate(visible):
        if isinstance(sees, np.ndarray) and sees.dtype == np.int64:
            at = sees
        else:
            at = np.arange(max(sees[0], 0), min(sees[1], len(k)))
        for h in range(q_heads):
            sink = -np.inf if sinks is None else np.float64(sinks[h])
            if len(at) == 0 and sink == -np.inf:
                continue
            s = scale * (k64[at, h // group] @ q64[i, h])
            s = soft_cap * np.tanh(s / soft_cap) if soft_cap else s
            top = max(s.max(initial=-np.inf), sink)
            p = np.exp(s - top)
            total = p.sum() + np.exp(sink - top)
            seen = v64[at, h // group]
            answer.out[i, h] = p @ seen / total
            answer.lse[i, h] = top + np.log(total)
            once = (p.astype(np.float32).astype(dtype).astype(np.float64) @ seen) / total
            answer.rounded[i, h] = once.astype(np.float32).astype(dtype).astype(np.float64)
    return answer


def together(answers: list[Answer]) -> Answer:
    return Answer(*(np.concatenate([getattr(a, f) for a in answers]) for f in vars(answers[0])))


def tree_positions(mask: int, q_len: int, kv_len: int) -> np.ndarray:
    """Positions that a row of a tree of draft tokens sees."""
    drafts = [kv_len - q_len + j for j in range(q_len) if int(mask) >> j & 1]
    prefix = range(max(kv_len - q_len, 0))
    return np.array([*prefix, *(p for p in drafts if p >= 0)], np.int64)


def causal(q_len: int, kv_len: int, window: int = 0) -> list[tuple[int, int]]:
    ends = [kv_len - q_len + i + 1 for i in range(q_len)]
    return [(max(end - window, 0) if window else 0, end) for end in ends]
