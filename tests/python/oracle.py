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


def rows(q, k, v, visible, scale=None) -> Answer:
    """Rows ``q [n, q_heads, d]`` over ``k, v [tokens, kv_heads, d]``; row i sees visible[i]."""
    dtype = q.dtype
    n, q_heads, d = q.shape
    group = q_heads // k.shape[1]
    q64, k64, v64 = (x.astype(np.float64) for x in (q, k, v))
    scale = 1 / np.sqrt(d) if scale is None else scale
    answer = Answer(np.zeros(q.shape), np.full((n, q_heads), -np.inf), np.zeros(q.shape))
    for i, (begin, end) in enumerate(visible):
        begin, end = max(begin, 0), min(end, len(k))
        if begin >= end:
            continue
        for h in range(q_heads):
            s = scale * (k64[begin:end, h // group] @ q64[i, h])
            p = np.exp(s - s.max())
            seen = v64[begin:end, h // group]
            answer.out[i, h] = p @ seen / p.sum()
            answer.lse[i, h] = s.max() + np.log(p.sum())
            once = (p.astype(np.float32).astype(dtype).astype(np.float64) @ seen) / p.sum()
            answer.rounded[i, h] = once.astype(np.float32).astype(dtype).astype(np.float64)
    return answer


def together(answers: list[Answer]) -> Answer:
    return Answer(*(np.concatenate([getattr(a, f) for a in answers]) for f in vars(answers[0])))


def causal(q_len: int, kv_len: int, window: int = 0) -> list[tuple[int, int]]:
    ends = [kv_len - q_len + i + 1 for i in range(q_len)]
    return [(max(end - window, 0) if window else 0, end) for end in ends]
