"""FlashInfer: batch decode over page tables, and its cascade of levels."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from . import peer
from .peer import Config, Peer, require_module
from .problem import Problem


@functools.cache
def _workspace(device: str) -> torch.Tensor:
    return torch.zeros(512 << 20, dtype=torch.uint8, device=device)


def _library() -> Any:
    return require_module("flashinfer-python", "flashinfer")


def _table(
    problem: Problem, widths: np.ndarray, ids: np.ndarray, tokens: np.ndarray, page_tokens: int
) -> tuple[torch.Tensor, ...]:
    """indptr, page ids and tokens of the last pages, of rows of so many pages and tokens."""
    last = tokens - (widths - 1) * page_tokens
    made = (np.append(0, np.cumsum(widths)), ids, last)
    return tuple(problem.ints(x) for x in made)


class _FlashInfer(Peer):
    packages = ("flashinfer-python", "torch")
    _plan_us: float | None = None

    def check(self, problem: Problem) -> None:
        _library()

    def planned(self) -> dict[str, float]:
        return {} if self._plan_us is None else {"plan_us": self._plan_us}

    def _timed(self, device: str, plan: Callable[[], None]) -> None:
        plan()  # builds or loads the kernels
        times = []
        for _ in range(3):
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            plan()
            times.append(1e6 * (time.perf_counter() - start))
        self._plan_us = min(times)


class FlashInferDecode(_FlashInfer):
    """Shared pages are one page in memory, which the L2 cache may give again."""

    name = "flashinfer"
    about = "FlashInfer batch decode over page tables, nothing shared"
    shares = False

    def configs(self, problem: Problem) -> list[Config]:
        if problem.shape.q_len > 1:
            kinds = [{"backend": "fa2"}, {"backend": "fa3"}]
        else:
            kinds = [{"tensor_cores": True}, {"tensor_cores": False}]
        return [{"page_tokens": page, **kind} for kind in kinds for page in problem.page_sizes]

    def prepare(self, problem: Problem, config: Config) -> Callable[[], torch.Tensor]:
        shape, paged = problem.shape, problem.paged(config["page_tokens"])
        heads = (shape.q_heads, shape.kv_heads, shape.head_dim, paged.page_tokens)
        types = {"q_data_type": problem.q.dtype, "kv_data_type": paged.k.dtype}
        tables = _table(problem, paged.widths, paged.ids, shape.lengths, paged.page_tokens)
        library = _library()
        if shape.q_len > 1:
            wrapper = library.BatchPrefillWithPagedKVCacheWrapper(
                _workspace(problem.device), "NHD", backend=config["backend"]
            )
            q_indptr = problem.ints(problem.q_indptr)
            self._timed(
                problem.device,
                lambda: wrapper.plan(q_indptr, *tables, *heads, causal=True, **types),
            )
        else:
            wrapper = library.BatchDecodeWithPagedKVCacheWrapper(
                _workspace(problem.device), "NHD", use_tensor_cores=config["tensor_cores"]
            )
            self._timed(problem.device, lambda: wrapper.plan(*tables, *heads, **types))
        return lambda: wrapper.run(problem.q, (paged.k, paged.v))


class FlashInferCascade(_FlashInfer):
    """``backend`` is that of its prefill kernels, of which a level is one call."""

    name = "flashinfer-levels"
    about = "FlashInfer MultiLevelCascadeAttentionWrapper"
    rounds_levels = True

    def check(self, problem: Problem) -> None:
        super().check(problem)
        peer.equal_lengths(problem)
        peer.sharing(problem)
        peer.equal_groups(problem)
        peer.rows_in_last_level(problem)

    def configs(self, problem: Problem) -> list[Config]:
        return [
            {"page_tokens": page, "backend": backend}
            for backend in ("fa2", "fa3")
            for page in problem.page_sizes
        ]

    def prepare(self, problem: Problem, config: Config) -> Callable[[], torch.Tensor]:
        shape = problem.shape
        pool, tables = problem.level_pages(config["page_tokens"])
        levels = problem.levels
        wrapper = _library().MultiLevelCascadeAttentionWrapper(
            len(levels), _workspace(problem.device), "NHD"
        )
        for one in wrapper._batch_prefill_wrappers:  # the cascade has no argument for it
            one._backend = config["backend"]
        rows = len(problem.q)
        q_indptr = [
            problem.ints(np.arange(level.nodes + 1) * (rows // level.nodes)) for level in levels
        ]
        parts = [
            _table(
                problem,
                np.full(level.nodes, table.shape[1]),
                table.reshape(-1),
                np.full(level.nodes, level.tokens),
                pool.page_tokens,
            )
            for table, level in zip(tables, levels)
        ]
        self._timed(
            problem.device,
            lambda: wrapper.plan(
                q_indptr,
                *([part[i] for part in parts] for i in range(3)),
                shape.q_heads,
                shape.kv_heads,
                shape.head_dim,
                pool.page_tokens,
                causal=shape.q_len > 1,
                q_data_type=problem.q.dtype,
                kv_data_type=pool.k.dtype,
            ),
        )
        return lambda: wrapper.run(problem.q, (pool.k, pool.v))
