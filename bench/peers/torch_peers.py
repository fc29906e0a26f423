"""PyTorch's own attention: over whole contexts, and one call for each level with a merge."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right

from . import peer
from .merge import MERGES, Part
from .peer import Config, Peer, Skip
from .problem import Level, Problem

_BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}


class TorchPlain(Peer):
    """One call over whole contexts; nothing is shared."""

    shares = False

    def __init__(self, backend: str) -> None:
        self.name = f"torch-{backend}"
        self.about = f"PyTorch SDPA ({backend}), contiguous copies of whole contexts"
        self.devices = ("cuda", "cpu") if backend == "flash" else ("cuda",)
        self._backend = _BACKENDS[backend]

    def check(self, problem: Problem) -> None:
        peer.equal_lengths(problem)
        peer.no_page_size(problem)
        if problem.shape.q_len > 1 and problem.shape.sequence_tokens < problem.shape.q_len:
            raise Skip("a row that sees nothing has no result")

    def configs(self, problem: Problem) -> list[Config]:
        if problem.shape.q_len > 1:
            return [{"form": "heads"}]
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
        if shape.q_len > 1:
            return self._several_rows(problem, k, v)
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

    def _several_rows(
        self, problem: Problem, k: torch.Tensor, v: torch.Tensor
    ) -> Callable[[], torch.Tensor]:
        """The last rows of a context, which PyTorch's flag for causal masks does not mean."""
        shape = problem.shape
        q = problem.q.view(shape.batch, shape.q_len, shape.q_heads, shape.head_dim).transpose(1, 2)
        bias = causal_lower_right(shape.q_len, shape.sequence_tokens)
        if self._backend != SDPBackend.FLASH_ATTENTION or problem.device == "cpu":
            bias = last_rows_bias(problem, shape.sequence_tokens, group=1)

        def call() -> torch.Tensor:
            with sdpa_kernel(self._backend):
                out = F.scaled_dot_product_attention(
                    q, k, v, attn_mask=bias, enable_gqa=shape.group > 1
                )
            return out.transpose(1, 2).reshape(problem.q.shape)

        return call


def last_rows_bias(problem: Problem, tokens: int, group: int) -> torch.Tensor:
    """``[1, 1, q_len * group, tokens]``: what to add to scores over the last ``tokens`` of every
    context, of rows that lie as ``(q_len, group)``."""
    row = torch.arange(problem.shape.q_len, device=problem.device).repeat_interleave(group)
    token = torch.arange(tokens, device=problem.device)
    hidden = token[None] > tokens - problem.shape.q_len + row[:, None]
    bias = torch.zeros(hidden.shape, dtype=problem.q.dtype, device=problem.device)
    return bias.masked_fill_(hidden, -torch.inf)[None, None]


Mask = torch.Tensor | str | None
"""A bias; or "last rows" where the library has a mask for that; or none."""


def _flash(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, mask: Mask) -> Part:
    if q.device.type == "cpu":
        call = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return call(q, k, v, 0.0, False, attn_mask=mask, scale=scale)
    call = torch.ops.aten._scaled_dot_product_flash_attention
    out, lse, *_ = call(q, k, v, 0.0, mask is not None, False, scale=scale)
    return out, lse


def _cudnn(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, mask: Mask) -> Part:
    call = torch.ops.aten._scaled_dot_product_cudnn_attention
    out, lse, *_ = call(q, k, v, mask, True, 0.0, False, False, scale=scale)
    return out, lse.reshape(out.shape[:3])


class TorchLevels(Peer):
    """Each level once for all rows under it, in one call; the results are merged."""

    rounds_levels = True

    def __init__(self, backend: str) -> None:
        self.name = f"torch-{backend}-levels"
        self.about = f"PyTorch SDPA ({backend}), one call a level, LSE merge"
        self.devices = ("cuda", "cpu") if backend == "flash" else ("cuda",)
        self._attend = {"flash": _flash, "cudnn": _cudnn}[backend]
        self._bias = backend != "flash"

    def check(self, problem: Problem) -> None:
        peer.equal_lengths(problem)
        peer.no_page_size(problem)
        peer.sharing(problem)
        peer.equal_groups(problem)
        peer.rows_in_last_level(problem)
        if 1 < problem.shape.q_len > problem.levels[-1].tokens:
            raise Skip("a row that sees no own token has no LSE")

    def configs(self, problem: Problem) -> list[Config]:
        if problem.device == "cpu":
            return [{"fold_group": True, "merge": "eager"}]
        folds = [True, False] if problem.shape.group > 1 else [False]
        if len(problem.levels) == 1:
            return [{"fold_group": fold} for fold in folds]
        tried = [{"fold_group": fold, "merge": "triton"} for fold in folds]
        return [*tried, {"fold_group": folds[0], "merge": "eager"}]

    def prepare(self, problem: Problem, config: Config) -> Callable[[], torch.Tensor]:
        merge, fold = MERGES[config.get("merge", "eager")], config["fold_group"]
        levels = problem.levels
        masks: list[Mask] = [None] * len(levels)
        if problem.shape.q_len > 1:
            if self._bias or problem.device == "cpu":
                group = problem.shape.group if fold else 1
                masks[-1] = last_rows_bias(problem, levels[-1].tokens, group)
            else:  # the group can't lie in the rows that this mask counts
                masks[-1] = "last rows"

        def call() -> torch.Tensor:
            parts = [
                self._level(problem, level, fold and not isinstance(mask, str), mask)
                for level, mask in zip(levels, masks)
            ]
            return merge(parts) if len(parts) > 1 else parts[0][0]

        return call

    def _level(self, problem: Problem, level: Level, fold_group: bool, mask: Mask) -> Part:
        """(out ``[rows, q_heads, d]``, lse ``[rows, q_heads]``) over one level's tokens."""
        shape = problem.shape
        q = problem.folded(level.nodes)
        nodes, rows = q.shape[:2]
        scale = 1 / math.sqrt(shape.head_dim)
        k, v = level.k.transpose(1, 2), level.v.transpose(1, 2)
        if not fold_group:
            out, lse = self._attend(q.transpose(1, 2), k, v, scale, mask)
            out, lse = out.transpose(1, 2), lse.transpose(1, 2)
        else:
            by_group = q.view(nodes, rows, shape.kv_heads, shape.group, shape.head_dim)
            size = (nodes, shape.kv_heads, rows * shape.group, shape.head_dim)
            rows_first = by_group.transpose(1, 2).reshape(size)
            out, lse = self._attend(rows_first, k, v, scale, mask)
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
