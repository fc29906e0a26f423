"""Pando itself, through its Python package."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

import pando_attn

from .peer import Config, Peer, Skip
from .problem import Problem


class Pando(Peer):
    """The plan decides what is shared; or shares nothing, or is batch-invariant."""

    devices = ("cuda", "cpu")
    packages = ("pando-attn", "torch")

    def __init__(self, name: str, about: str, **options: object) -> None:
        self.name, self.about, self._options = name, about, options
        self.plan: pando_attn.Plan | None = None
        self._plan_us: float | None = None

    def check(self, problem: Problem) -> None:
        reason = pando_attn.cuda_unavailable(0) if problem.device == "cuda" else ""
        if reason:
            raise Skip(reason)

    def configs(self, problem: Problem) -> list[Config]:
        pages = problem.page_sizes[:1] if problem.device == "cpu" else problem.page_sizes
        return [{"page_tokens": page} for page in pages]

    def prepare(self, problem: Problem, config: Config) -> Callable[[], torch.Tensor]:
        shape, paged = problem.shape, problem.paged(config["page_tokens"])
        tables = (problem.q_indptr, problem.kv_len, paged.indptr, paged.ids)
        plan = pando_attn.plan(
            *tables,
            paged.page_tokens,
            q_heads=shape.q_heads,
            kv_heads=shape.kv_heads,
            head_dim=shape.head_dim,
            dtype=problem.dtype,
            device=problem.device,
            **self._options,
        )
        times = []
        for _ in range(5):
            start = time.perf_counter()
            plan.update(*tables)
            times.append(1e6 * (time.perf_counter() - start))
        self.plan, self._plan_us = plan, min(times)
        if problem.device == "cuda":
            plan.upload()
            torch.cuda.synchronize()
        out = torch.empty_like(problem.q)
        return lambda: pando_attn.attend(plan, problem.q, paged.k, paged.v, out=out)

    def planned(self) -> dict[str, float]:
        if self.plan is None:
            return {}
        return {"plan_us": self._plan_us, "predicted_us": self.plan.predicted_us}

    def versions(self) -> dict[str, str]:
        return {"pando": pando_attn.__version__, "torch": torch.__version__}
