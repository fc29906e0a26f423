"""ChunkAttention's two phases (arXiv 2402.15220), written from the paper in PyTorch.

Chunk first: every chunk of a shared prefix is multiplied with the rows of all sequences under it,
and its partial result (o, max, sum) goes to memory. Sequence first: each sequence computes its own
tokens and folds its chunks' partials in. The paper's kernels are CUDA for fp16 and equal numbers of
q and kv heads; this is batched matrix products, so it says what the two phases cost when PyTorch
runs them, and no more.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from . import peer
from .peer import Config, Peer, Skip
from .problem import Level, Problem

_CHUNK = 64
_MOST_BYTES = 8 << 30  # of scores and partials


class ChunkAttention(Peer):
    name = "chunk-attention"
    about = "ChunkAttention's two phases, written from its paper as batched matrix products"
    devices = ("cuda", "cpu")
    rounds_levels = True  # products of PyTorch come in the input type

    def check(self, problem: Problem) -> None:
        peer.one_row(problem)
        peer.sharing(problem)
        peer.equal_groups(problem)
        shape = problem.shape
        chunks = sum(-(-level.tokens // _CHUNK) for level in problem.levels)
        size = 4 * shape.batch * shape.q_heads * chunks * (_CHUNK + shape.head_dim)
        if size > _MOST_BYTES:
            raise Skip(f"its scores and partials would take {size / 1e9:.0f} GB")

    def prepare(self, problem: Problem, config: Config) -> Callable[[], torch.Tensor]:
        shape = problem.shape
        shared = [level for level in problem.levels if level.nodes < shape.batch]
        own = [level for level in problem.levels if level.nodes == shape.batch]
        chunked = [_chunks(level) for level in shared]

        def call() -> torch.Tensor:
            parts = [_chunk_first(problem, *chunks) for chunks in chunked]
            parts += [_own(problem, level) for level in own]
            return _fold(problem, parts)

        return call


def _chunks(level: Level) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """K and V ``[nodes, kv_heads, chunks, 64, d]`` and what to add to the scores of the slots
    past the end, ``[chunks, 64]``."""
    count = -(-level.tokens // _CHUNK)
    empty = count * _CHUNK - level.tokens
    made = []
    for x in (level.k, level.v):
        padded = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, empty))
        made.append(padded.unflatten(1, (count, _CHUNK)).permute(0, 3, 1, 2, 4).contiguous())
    mask = None
    if empty:
        mask = torch.zeros(count, _CHUNK, device=level.k.device)
        mask[-1, -empty:] = -torch.inf
    return made[0], made[1], mask


def _rows(problem: Problem, nodes: int) -> torch.Tensor:
    """``[nodes, kv_heads, rows, d]``: the packed rows of each node."""
    shape = problem.shape
    q = problem.folded(nodes).unflatten(2, (shape.kv_heads, shape.group))
    return q.permute(0, 2, 1, 3, 4).reshape(nodes, shape.kv_heads, -1, shape.head_dim)


Partials = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""o, max, sum of ``[batch, q_heads, chunks, ...]``, fp32."""


def _chunk_first(
    problem: Problem, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
) -> Partials:
    q = _rows(problem, k.shape[0])[:, :, None]
    scores = (q @ k.transpose(-1, -2)).float() / math.sqrt(problem.shape.head_dim)
    if mask is not None:
        scores = scores + mask[:, None]
    largest = scores.amax(-1, keepdim=True)
    weights = torch.exp(scores - largest)
    out = (weights.to(v.dtype) @ v).float()
    return tuple(_by_row(problem, x) for x in (out, largest, weights.sum(-1, keepdim=True)))


def _own(problem: Problem, level: Level) -> Partials:
    """A sequence's own tokens as one chunk."""
    k, v = (x.transpose(1, 2)[:, :, None] for x in (level.k, level.v))
    return _chunk_first(problem, k, v, None)


def _by_row(problem: Problem, x: torch.Tensor) -> torch.Tensor:
    """``[nodes, kv_heads, chunks, rows, n]`` as ``[batch, q_heads, chunks, n]``."""
    x = x.unflatten(3, (-1, problem.shape.group)).permute(0, 3, 1, 4, 2, 5)
    return x.reshape(problem.shape.batch, problem.shape.q_heads, *x.shape[-2:])


def _fold(problem: Problem, parts: list[Partials]) -> torch.Tensor:
    out, largest, total = (torch.cat(xs, dim=2) for xs in zip(*parts))
    weights = torch.exp(largest - largest.amax(2, keepdim=True))
    merged = (weights * out).sum(2) / (weights * total).sum(2)
    return merged.to(problem.q.dtype)
