"""FlashAttention of any generation: whole contexts, and one call for each level with a merge."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from . import peer
from .merge import MERGES, Part
from .peer import Config, Peer
from .problem import Problem
from .traces import TraceStep


class Library(Protocol):
    """What the peers here need to know of one generation."""

    name: str  #: of the peer
    title: str
    packages: tuple[str, ...]  #: of PyPI
    splits: tuple[int, ...]  #: what is tried; 0 is its own choice

    def load(self) -> None:
        """Raises Skip when it is not installed."""

    def pages(self) -> tuple[int, ...]:
        """Page sizes that are tried; none where the build takes no page tables."""

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, splits: int, causal: bool,
        table: torch.Tensor | None = None, kv_len: torch.Tensor | None = None,
    ) -> Part:  # fmt: skip
        """(out ``[batch, rows, q_heads, d]``, lse ``[batch, q_heads, rows]``) of q over K and V
        ``[batch, tokens, kv_heads, d]``, or in pages; causal has the last row see all."""


def _forms(library: Library, problem: Problem, contiguous: str) -> list[Config]:
    only_paged = problem.shape.page_tokens or isinstance(problem.shape, TraceStep)
    forms: list[Config] = [] if only_paged else [{"form": contiguous}]
    pages = library.pages()
    if pages and problem.shape.page_tokens:
        pages = problem.page_sizes
    return forms + [{"form": "paged", "page_tokens": page} for page in pages]


class FlashPlain(Peer):
    """``whole``: contiguous copies of whole contexts; ``paged``: shared pages are one page, which
    the L2 cache may give again."""

    shares = False

    def __init__(self, library: Library) -> None:
        self._library = library
        self.name, self.packages = library.name, (*library.packages, "torch")
        self.about = f"{library.title}, whole contexts, nothing shared"

    def check(self, problem: Problem) -> None:
        self._library.load()
        if not self._library.pages():
            peer.equal_lengths(problem)
            peer.no_page_size(problem)

    def configs(self, problem: Problem) -> list[Config]:
        forms = _forms(self._library, problem, "whole")
        return [{**form, "splits": n} for form in forms for n in self._library.splits[:2]]

    def prepare(self, problem: Problem, config: Config) -> Callable[[], torch.Tensor]:
        shape, attend = problem.shape, self._library.attend
        q = problem.q.view(shape.batch, shape.q_len, shape.q_heads, shape.head_dim)
        table, kv_len = None, None
        if config["form"] == "paged":
            paged = problem.paged(config["page_tokens"])
            k, v, table = paged.k, paged.v, problem.ints(paged.table)
            kv_len = problem.ints(problem.kv_len)
        else:
            k, v = problem.whole.k, problem.whole.v
        causal = shape.q_len > 1
        return lambda: attend(q, k, v, config["splits"], causal, table, kv_len)[0].view(
            problem.q.shape
        )


class FlashLevels(Peer):
    """Splits are those of all levels but the own tokens, which have ``own_splits``."""

    rounds_levels = True

    def __init__(self, library: Library) -> None:
        self._library = library
        self.name = f"{library.name}-levels"
        self.packages = (*library.packages, "torch", "triton")
        self.about = f"{library.title}, one call a level, LSE merge in one Triton kernel"

    def check(self, problem: Problem) -> None:
        self._library.load()
        peer.equal_lengths(problem)
        peer.sharing(problem)
        peer.equal_groups(problem)
        peer.rows_in_last_level(problem)
        if not self._library.pages():
            peer.no_page_size(problem)

    def configs(self, problem: Problem) -> list[Config]:
        splits = self._library.splits
        own = splits[1::-1] if problem.levels[-1].nodes == problem.shape.batch else splits[:1]
        made: list[Config] = []
        for form in _forms(self._library, problem, "contiguous"):
            made += [{**form, "splits": a, "own_splits": b} for b in own for a in splits]
        return made

    def prepare(self, problem: Problem, config: Config) -> Callable[[], torch.Tensor]:
        shape, last = problem.shape, len(problem.levels) - 1
        inputs = self._inputs(problem, config)

        def one(i: int) -> Part:
            own = problem.levels[i].nodes == shape.batch
            out, lse = self._library.attend(
                problem.folded(problem.levels[i].nodes),
                *inputs[i][:2],
                config["own_splits" if own else "splits"],
                i == last and shape.q_len > 1,
                *inputs[i][2:],
            )
            return out.view(problem.q.shape), lse.transpose(1, 2).reshape(problem.q.shape[:2])

        def call() -> torch.Tensor:
            parts = [one(i) for i in range(last + 1)]
            return MERGES["triton"](parts) if len(parts) > 1 else parts[0][0]

        return call

    def _inputs(self, problem: Problem, config: Config) -> list[tuple]:
        """K, V, page table and lengths of each level."""
        if config["form"] == "contiguous":
            return [(level.k, level.v, None, None) for level in problem.levels]
        pool, tables = problem.level_pages(config["page_tokens"])
        lengths = [np.full(level.nodes, level.tokens) for level in problem.levels]
        return [
            (pool.k, pool.v, problem.ints(table), problem.ints(length))
            for table, length in zip(tables, lengths)
        ]
