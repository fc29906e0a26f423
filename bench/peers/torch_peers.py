"""PyTorch's own attention: over whole contexts, and one call for each level with a merge."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from . import peer
from .merge import MERGES, Part
from .peer import Config, Peer
from .problem import Level, Problem

_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


class TorchPlain(Peer):
    """One call over whole contexts; nothing is shared."""

    def __init__(self, backend: str) -> None:
        self.name = f"torch-{backend}"
        self.about = f"PyTorch SDPA ({backend}), contiguous copies of whole contexts"
        self.devices = ("cuda", "cpu") if backend == "flash" else ("cuda",)
        self._backend = _BACKENDS[backend]

    def check(self, problem: Problem) -> None:
        peer.one_row(problem)

    def configs(self, problem: Problem) -> list[Config]:
        forms = ["rows", "heads"] if problem.shape.group > 1 else ["heads"]
        if problem.device == "cpu":
            forms.append("loop")
        return [{"form": form} for form in forms]

    def kv_bytes(self, problem: Problem) -> int:
        return (
            problem.kv_bytes
            * problem.shape.batch
            * problem.shape.sequence_tokens
            // (problem.shape.unique_tokens)
        )

    def prepare(self, problem: Problem, config: Config) -> Callable[[], torch.Tensor]:
        shape, whole = problem.shape, problem.whole
        k, v = whole.k.transpose(1, 2), whole.v.transpose(1, 2)
        if problem.device == "cpu":  # as PyTorch's CPU kernels want it
            k, v = problem.copied(k), problem.copied(v)
        per_head = config["form"] == "heads"
        size = (shape.q_heads, 1) if per_head else (shape.kv_heads, shape.group)
        q = problem.q.view(shape.batch, *size, shape.head_dim)
        gqa = per_head and shape.group > 1

        def call() -> torch.Tensor:
            with sdpa_kernel(self._backend):
                if config["form"] == "loop":
                    parts = [
                        F.scaled_dot_product_attention(q[b : b + 1], k[b : b + 1], v[b : b + 1])
                        for b in range(shape.batch)
                    ]
                    out = torch.cat(parts)
                else:
                    out = F.scaled_dot_product_attention(q, k, v, enable_gqa=gqa)
            return out.reshape(problem.q.shape)

        return call


def _flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> Part:
    if q.device.type == "cpu":
        call = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return call(q, k, v, 0.0, False, scale=scale)
    call = torch.ops.aten._scaled_dot_product_flash_attention
    out, lse, *_ = call(q, k, v, 0.0, False, False, scale=scale)
    return out, lse


def _cudnn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> Part:
    call = torch.ops.aten._scaled_dot_product_cudnn_attention
    out, lse, *_ = call(q, k, v, None, True, 0.0, False, False, scale=scale)
    return out, lse.reshape(out.shape[:3])


class TorchLevels(Peer):
    """Each level once for all rows under it, in one call; the results are merged."""

    rounds_levels = True

    def __init__(self, backend: str) -> None:
        self.name = f"torch-{backend}-levels"
        self.about = f"PyTorch SDPA ({backend}), one call a level, LSE merge"
        self.devices = ("cuda", "cpu") if backend == "flash" else ("cuda",)
        self._attend = {"flash": _flash, "cudnn": _cudnn}[backend]

    def check(self, problem: Problem) -> None:
        peer.one_row(problem)
        peer.sharing(problem)
        peer.equal_groups(problem)

    def configs(self, problem: Problem) -> list[Config]:
        if problem.device == "cpu":
            return [{"fold_group": True, "merge": "eager"}]
        folds = [True, False] if problem.shape.group > 1 else [False]
        if len(problem.levels) == 1:
            return [{"fold_group": fold} for fold in folds]
        tried = [{"fold_group": fold, "merge": "triton"} for fold in folds]
        return [*tried, {"fold_group": folds[0], "merge": "eager"}]

    def prepare(self, problem: Problem, config: Config) -> Callable[[], torch.Tensor]:
        merge = MERGES[config.get("merge", "eager")]
        levels = problem.levels

        def call() -> torch.Tensor:
            parts = [self._level(problem, level, config["fold_group"]) for level in levels]
            return merge(parts) if len(parts) > 1 else parts[0][0]

        return call

    def _level(self, problem: Problem, level: Level, fold_group: bool) -> Part:
        """(out ``[batch, q_heads, d]``, lse ``[batch, q_heads]``) over one level's tokens."""
        shape = problem.shape
        q = problem.folded(level.nodes)
        nodes, rows = q.shape[:2]
        scale = 1 / math.sqrt(shape.head_dim)
        k, v = level.k.transpose(1, 2), level.v.transpose(1, 2)
        if not fold_group:
            out, lse = self._attend(q.transpose(1, 2), k, v, scale)
            out, lse = out.transpose(1, 2), lse.transpose(1, 2)
        else:
            by_group = q.view(nodes, rows, shape.kv_heads, shape.group, shape.head_dim)
            size = (nodes, shape.kv_heads, rows * shape.group, shape.head_dim)
            out, lse = self._attend(by_group.transpose(1, 2).reshape(size), k, v, scale)
            out = out.unflatten(2, (rows, shape.group)).transpose(1, 2)
            lse = lse.unflatten(2, (rows, shape.group)).transpose(1, 2)
        return out.reshape(problem.q.shape), lse.reshape(problem.q.shape[:2])


class Hydragen(TorchLevels):
    """As the paper (arXiv 2402.05099) describes it: the queries of a level's sequences become the
    rows of one batched attention call, heads stay heads, and the parts are combined by their
    LSEs in PyTorch. FlashAttention is the one of PyTorch."""

    def __init__(self) -> None:
        super().__init__("flash")
        self.name = "hydragen"
        self.about = "Hydragen, written from its paper on PyTorch's FlashAttention"

    def configs(self, problem: Problem) -> list[Config]:
        # PyTorch's CPU kernel takes no fewer kv heads than q heads with an LSE.
        return [{"fold_group": problem.device == "cpu", "merge": "eager"}]
