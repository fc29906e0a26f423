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
        peer.equal_lengths(problem)
        peer.no_page_size(problem)

    def configs(self, problem: Problem) -> list[Config]:
        whole, packed = {"form": "whole"}, {"form": "packed"}
        return [packed, whole] if problem.shape.shares else [whole]

    def prepare(self, problem: Problem, config: Config) -> Callable[[], torch.Tensor]:
        from torch.nn.attention.flex_attention import flex_attention

        compiled = torch.compile(flex_attention, dynamic=False)
        shape = problem.shape
        gqa = shape.group > 1
        if config["form"] == "whole":
            size = (shape.batch, shape.q_len, shape.q_heads, shape.head_dim)
            q = problem.q.view(size).transpose(1, 2)
            k, v = (x.transpose(1, 2) for x in (problem.whole.k, problem.whole.v))
            mask = _last_rows(problem) if shape.q_len > 1 else None

            def whole() -> torch.Tensor:
                out = compiled(q, k, v, block_mask=mask, enable_gqa=gqa)
                return out.transpose(1, 2).reshape(problem.q.shape)

            return whole
        q = problem.q.transpose(0, 1)[None]
        k, v = (x.transpose(0, 1).contiguous()[None] for x in problem.packed())
        mask = _under_own_nodes(problem)

        def call() -> torch.Tensor:
            out = compiled(q, k, v, block_mask=mask, enable_gqa=gqa)
            return out[0].transpose(0, 1).reshape(problem.q.shape)

        return call


def _last_rows(problem: Problem):
    """The rows of a sequence are its last tokens, and see none after them."""
    from torch.nn.attention.flex_attention import create_block_mask

    shape = problem.shape
    before = shape.sequence_tokens - shape.q_len

    def sees(batch, head, row, token):
        return token <= before + row

    return create_block_mask(
        sees, None, None, shape.q_len, shape.sequence_tokens, device=problem.device
    )


def _under_own_nodes(problem: Problem):
    """A row sees the tokens of the nodes that its sequence is under, as far as its position."""
    from torch.nn.attention.flex_attention import create_block_mask

    shape = problem.shape
    parts, begin = [], 0
    for level in shape.levels:
        _, first = np.unique(shape.node_of(level), return_index=True)
        last = np.append(first[1:], shape.batch) - 1
        tokens = shape.tokens[level]
        position = np.tile(begin + np.arange(tokens), len(first))
        parts.append((np.repeat(first, tokens), np.repeat(last, tokens), position))
        begin += tokens
    first, last, position = (
        torch.from_numpy(np.concatenate(x)).to(problem.device) for x in zip(*parts)
    )
    before = shape.sequence_tokens - shape.q_len

    def sees(batch, head, row, token):
        sequence = row // shape.q_len
        under = (first[token] <= sequence) & (sequence <= last[token])
        return under & (position[token] <= before + row % shape.q_len)

    return create_block_mask(sees, None, None, len(problem.q), len(first), device=problem.device)
