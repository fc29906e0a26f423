"""What attention should give, in fp64, and how far a result may be from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from pando_attn import _arguments, _native

from .problem import Problem
from .traces import TraceStep


class WrongAnswer(Exception):
    """A result that is further from the oracle than allowed."""


@dataclass
class Answer:
    """Of all rows of some sequences; errors are the largest absolute ones. What is allowed is the
    project's one tolerance, of src/core/tolerance.h."""

    sequences: list[int]
    out: torch.Tensor  #: fp64 ``[sequences, q_len, q_heads, head_dim]``
    allowed: float
    allowed_levels: float  #: where each level's result is rounded before the merge

    def error(self, out: torch.Tensor, rounds_levels: bool = False) -> float:
        """Of ``[batch * q_len, q_heads, head_dim]``. Raises WrongAnswer."""
        q_len, q_heads, head_dim = self.out.shape[1:]
        rows = out.reshape(-1, q_len, q_heads, head_dim)[self.sequences].to(torch.float64)
        error = (rows - self.out).abs().max().item()
        allowed = self.limit(rounds_levels)
        if not error <= allowed:  # NaN too
            raise WrongAnswer(f"largest error {error:.3g}, allowed {allowed:.3g}")
        return error

    def limit(self, rounds_levels: bool) -> float:
        return self.allowed_levels if rounds_levels else self.allowed


def answer(problem: Problem, sequences: int = 3) -> Answer:
    """Of the first, the last and some sequences between."""
    batch = problem.shape.batch
    picked = sorted({round(i * (batch - 1) / max(sequences - 1, 1)) for i in range(sequences)})
    rows = [_Rows(problem, b) for b in picked]
    out = torch.stack([each.exact() for each in rows])
    largest_lse = max(each.lse.abs().max().item() for each in rows)

    def allowed(bounds: list[list[tuple[int, int]]]) -> float:
        rounded = torch.stack([each.rounded(own) for each, own in zip(rows, bounds)])
        limit, _ = _native.tolerance(
            _arguments.DTYPES.index(problem.dtype),
            (rounded - out).abs().max().item(),
            0.0,  # only the output is judged
            out.abs().max().item(),
            largest_lse,
        )
        return limit

    whole = allowed([[(0, int(problem.shape.lengths[b]))] for b in picked])
    if isinstance(problem.shape, TraceStep):
        return Answer(picked, out, whole, whole)
    ends = np.cumsum([level.tokens for level in problem.levels]).tolist()
    return Answer(picked, out, whole, allowed([list(zip([0, *ends[:-1]], ends))] * len(picked)))


class _Rows:
    """The rows of one sequence as ``[kv_heads, group * q_len, ...]``."""

    def __init__(self, problem: Problem, b: int) -> None:
        self._shape, self._element = problem.shape, problem.q.dtype
        shape = problem.shape
        self._k, self._v = (x.transpose(0, 1) for x in problem.sequence(b))
        rows = problem.q.view(shape.batch, shape.q_len, shape.q_heads, shape.head_dim)[b]
        self._q = rows.transpose(0, 1).reshape(
            shape.kv_heads, shape.group * shape.q_len, shape.head_dim
        )
        self._scores = self._scores_in(torch.float64)
        self.lse = torch.logsumexp(self._scores, -1, keepdim=True)

    def _scores_in(self, dtype: torch.dtype) -> torch.Tensor:
        shape = self._shape
        scores = self._q.to(dtype) @ self._k.to(dtype).transpose(1, 2) / math.sqrt(shape.head_dim)
        # A row sees what is before it: the rows are the last tokens.
        row = torch.arange(shape.q_len, device=scores.device).repeat(shape.group)[:, None]
        column = torch.arange(scores.shape[-1], device=scores.device)[None]
        return scores.masked_fill_(column > scores.shape[-1] - shape.q_len + row, -torch.inf)

    def exact(self) -> torch.Tensor:
        weights = torch.exp(self._scores - self.lse)
        return self._by_row(weights @ self._v.to(torch.float64))

    def rounded(self, bounds: list[tuple[int, int]]) -> torch.Tensor:
        """In fp32, with the roundings that no implementation can avoid which computes the tokens
        between these bounds one after another: of the weights, of each part, of the whole."""
        all_scores, v = self._scores_in(torch.float32), self._v.to(torch.float32)
        lse = self.lse.to(torch.float32)
        merged = torch.zeros((), device=v.device)
        for begin, end in bounds:
            scores = all_scores[..., begin:end]
            largest = scores.max(-1, keepdim=True).values.clamp(min=-1e30)
            weights = torch.exp(scores - largest)
            total = weights.sum(-1, keepdim=True)
            part = self._product(weights, v[:, begin:end]) / total.clamp(min=1e-30)
            share = total * torch.exp(largest - lse)
            merged = merged + share * (self._round(part) if len(bounds) > 1 else part)
        return self._by_row(self._round(merged).to(torch.float64))

    def _product(self, weights: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        if self._element != torch.float32:
            return self._round(weights) @ v
        # Where nothing else is rounded the order of the sum shows: token by token, as the
        # project's own reference has it. A matrix product is better than that.
        out = torch.zeros((*weights.shape[:2], v.shape[2]), device=v.device)
        for token in range(v.shape[1]):
            out += weights[..., token : token + 1] * v[:, token : token + 1]
        return out

    def _round(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self._element).to(torch.float32)

    def _by_row(self, x: torch.Tensor) -> torch.Tensor:
        shape = self._shape
        return x.view(shape.q_heads, shape.q_len, shape.head_dim).transpose(0, 1)
