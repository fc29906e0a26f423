"""FlashAttention-3: PyPI's fa3-fwd (contiguous KV only), or a build that takes page tables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from . import peer
from .merge import MERGES
from .peer import Config, Peer, Skip, require_module
from .problem import Level, Problem


def _library() -> tuple[Any, bool]:
    """(the module, whether it takes page tables)."""
    try:
        return require_module("flash-attn-3", "flash_attn_interface"), True
    except Skip:
        return require_module("fa3-fwd", "fa3_fwd_interface"), False


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: Any) -> tuple:
    library, _ = _library()
    out, lse, *_ = library.flash_attn_with_kvcache(q, k, v, return_softmax_lse=True, **options)
    return out, lse


class Fa3(Peer):
    """``whole``: contiguous copies of whole contexts; ``paged``: shared pages are one page, which
    the L2 cache may give again."""

    name = "fa3"
    about = "FlashAttention-3, whole contexts, nothing shared"
    packages = ("fa3-fwd", "torch")

    def check(self, problem: Problem) -> None:
        _library()

    def configs(self, problem: Problem) -> list[Config]:
        forms = [{"form": "whole"}]
        if _library()[1]:
            forms += [{"form": "paged", "page_tokens": page} for page in (64, 16)]
        return [{**form, "splits": splits} for form in forms for splits in (0, 1)]

    def prepare(self, problem: Problem, config: Config) -> Callable[[], torch.Tensor]:
        shape = problem.shape
        q = problem.q.view(shape.batch, shape.q_len, shape.q_heads, shape.head_dim)
        options: dict[str, Any] = {"num_splits": config["splits"], "causal": shape.q_len > 1}
        if config["form"] == "whole":
            k, v = problem.whole.k, problem.whole.v
            if k.stride(0) == 0:  # one context for all
                k, v = k[:1], v[:1]
                options["cache_batch_idx"] = torch.zeros(
                    shape.batch, dtype=torch.int32, device=problem.device
                )
        else:
            paged = problem.paged(config["page_tokens"])
            k, v = paged.k, paged.v
            options["page_table"] = torch.from_numpy(paged.table).to(problem.device)
            options["cache_seqlens"] = torch.from_numpy(problem.kv_len).to(problem.device)
        return lambda: _attend(q, k, v, **options)[0].view(problem.q.shape)


class Fa3Levels(Peer):
    """Splits are those of all levels but the own tokens, which have ``own_splits``."""

    name = "fa3-levels"
    about = "FlashAttention-3, one call a level on contiguous KV, LSE merge in one Triton kernel"
    packages = ("fa3-fwd", "torch", "triton")
    rounds_levels = True

    def check(self, problem: Problem) -> None:
        _library()
        peer.sharing(problem)
        peer.equal_groups(problem)
        if problem.shape.q_len > 1 and problem.levels[-1].nodes < problem.shape.batch:
            raise Skip("several last rows of a context that is all shared need a mask in between")

    def configs(self, problem: Problem) -> list[Config]:
        own = [1, 0] if problem.levels[-1].nodes == problem.shape.batch else [1]
        return [{"splits": splits, "own_splits": n} for n in own for splits in (0, 1, 8, 32)]

    def prepare(self, problem: Problem, config: Config) -> Callable[[], torch.Tensor]:
        levels = problem.levels

        def one(level: Level) -> tuple[torch.Tensor, torch.Tensor]:
            own = level.nodes == problem.shape.batch
            out, lse = _attend(
                problem.folded(level.nodes),
                level.k,
                level.v,
                num_splits=config["own_splits" if own else "splits"],
                causal=own and problem.shape.q_len > 1,
            )
            return out.view(problem.q.shape), lse.transpose(1, 2).reshape(problem.q.shape[:2])

        def call() -> torch.Tensor:
            parts = [one(level) for level in levels]
            return MERGES["triton"](parts) if len(parts) > 1 else parts[0][0]

        return call
