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

    def check(self, problem: Problem) -> None:
        peer.one_row(problem)
        peer.equal_lengths(problem)
        peer.no_page_size(problem)
        peer.sharing(problem)
        peer.equal_groups(problem)
        shape = problem.shape
        chunks = sum(-(-level.tokens // _CHUNK) for level in problem.levels)
        size = 4 * shape.batch * shape.q_heads * chunks * (_CHUNK + shape.head_dim)
        if size > _MOST_BYTES:
            raise Skip(f"its scores and partials would take {size / 1e9:.0f} GB")

    def prepare(self, problem: Problem, config: Config) -> Callable[[], torch.Tensor]:
        shape = problem.shape
        # Shared tokens in chunks; a sequence's own ones are one.
        sizes = [level.tokens if level.nodes == shape.batch else _CHUNK for level in problem.levels]
        chunked = [_chunks(level, size) for level, size in zip(problem.levels, sizes)]

        def call() -> torch.Tensor:
            parts = [_partials(problem, size, *kv) for size, kv in zip(sizes, chunked)]
            return _fold(problem, parts)

        return call


def _chunks(level: Level, chunk: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """K and V ``[nodes * kv_heads, chunks * chunk, d]`` and what to add to the scores of the slots
    past the end, ``[chunks * chunk]``."""
    slots = -(-level.tokens // chunk) * chunk
    made = []
    for x in (level.k, level.v):
        padded = torch.nn.functional.pad(x, (0, 0, 0, 0, 0, slots - level.tokens))
        by_head = padded.transpose(1, 2).flatten(0, 1)
        # PyTorch's CPU gives a product in the type of its factors.
        made.append(by_head.float() if x.device.type == "cpu" else by_head.contiguous())
    mask = None
    if slots > level.tokens:
        mask = torch.zeros(slots, device=level.k.device)
        mask[level.tokens :] = -torch.inf
    return made[0], made[1], mask


def _rows(problem: Problem, nodes: int) -> torch.Tensor:
    """``[nodes * kv_heads, rows, d]``: the packed rows of each node."""
    shape = problem.shape
    q = problem.folded(nodes).unflatten(2, (shape.kv_heads, shape.group))
    return q.permute(0, 2, 1, 3, 4).reshape(nodes * shape.kv_heads, -1, shape.head_dim)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """In fp32, as tensor cores add up."""
    if a.device.type == "cpu" or a.dtype == torch.float32:
        return a.float() @ b
    return torch.bmm(a, b, out_dtype=torch.float32)


Partials = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""o, max, sum of ``[batch, q_heads, chunks, ...]``, fp32."""


def _partials(
    problem: Problem, chunk: int, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None
) -> Partials:
    nodes = len(k) // problem.shape.kv_heads
    q = _rows(problem, nodes)
    scores = _product(q, k.transpose(1, 2)) / math.sqrt(problem.shape.head_dim)
    if mask is not None:
        scores = scores + mask
    scores = scores.unflatten(2, (-1, chunk)).transpose(1, 2)  # [heads, chunks, rows, chunk]
    largest = scores.amax(-1, keepdim=True)
    weights = torch.exp(scores - largest)
    out = _product(
        weights.to(v.dtype).flatten(0, 1), v.unflatten(1, (-1, chunk)).flatten(0, 1)
    ).view(*scores.shape[:3], -1)
    parts = (out, largest, weights.sum(-1, keepdim=True))
    return tuple(_by_row(problem, nodes, x) for x in parts)


def _by_row(problem: Problem, nodes: int, x: torch.Tensor) -> torch.Tensor:
    """``[nodes * kv_heads, chunks, rows, n]`` as ``[batch, q_heads, chunks, n]``."""
    shape = problem.shape
    x = x.unflatten(0, (nodes, shape.kv_heads)).unflatten(3, (-1, shape.group))
    return x.permute(0, 3, 1, 4, 2, 5).reshape(shape.batch, shape.q_heads, *x.shape[2:3], -1)


def _fold(problem: Problem, parts: list[Partials]) -> torch.Tensor:
    out, largest, total = (torch.cat(xs, dim=2) for xs in zip(*parts))
    weights = torch.exp(largest - largest.amax(2, keepdim=True))
    merged = (weights * out).sum(2) / (weights * total).sum(2)
    return merged.to(problem.q.dtype)
