"""PyTorch's FlexAttention: the batch as one packed sequence under a block mask."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from . import peer
from .peer import Config, Peer, require_module
from .problem import Problem


class Flex(Peer):
    """``whole``: whole contexts, nothing shared. ``packed``: all tokens once, in one sequence that
    all rows look at; the block mask leaves out the blocks that no row of a tile sees."""

    name = "torch-flex"
    about = (
        "PyTorch FlexAttention, compiled: whole contexts, or every token once under a block mask"
    )

    def check(self, problem: Problem) -> None:
        require_module("torch", "torch.nn.attention.flex_attention")
        peer.one_row(problem)

    def configs(self, problem: Problem) -> list[Config]:
        whole, packed = {"form": "whole"}, {"form": "packed"}
        return [packed, whole] if problem.shape.shares else [whole]

    def prepare(self, problem: Problem, config: Config) -> Callable[[], torch.Tensor]:
        from torch.nn.attention.flex_attention import flex_attention

        compiled = torch.compile(flex_attention, dynamic=False)
        shape = problem.shape
        gqa = shape.group > 1
        if config["form"] == "whole":
            q = problem.q.view(shape.batch, shape.q_heads, 1, shape.head_dim)
            k, v = (x.transpose(1, 2) for x in (problem.whole.k, problem.whole.v))
            return lambda: compiled(q, k, v, enable_gqa=gqa).reshape(problem.q.shape)
        q = problem.q.transpose(0, 1)[None]
        k, v = (
            torch.cat([getattr(level, name).flatten(0, 1) for level in problem.levels])
            .transpose(0, 1)
            .contiguous()[None]
            for name in "kv"
        )
        mask = _mask(problem)

        def call() -> torch.Tensor:
            out = compiled(q, k, v, block_mask=mask, enable_gqa=gqa)
            return out[0].transpose(0, 1).reshape(problem.q.shape)

        return call


def _mask(problem: Problem):
    """Row b sees the tokens of the nodes that it is under."""
    from torch.nn.attention.flex_attention import create_block_mask

    shape = problem.shape
    first_row, last_row = [], []
    for level in shape.levels:
        _, first = np.unique(shape.node_of(level), return_index=True)
        last = np.append(first[1:], shape.batch) - 1
        first_row.append(np.repeat(first, shape.tokens[level]))
        last_row.append(np.repeat(last, shape.tokens[level]))
    first, last = (
        torch.from_numpy(np.concatenate(x)).to(problem.device) for x in (first_row, last_row)
    )

    def sees(batch, head, row, token):
        return (first[token] <= row) & (row <= last[token])

    return create_block_mask(sees, None, None, shape.batch, len(first), device=problem.device)
