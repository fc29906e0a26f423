"""FlashAttention-3: PyPI's fa3-fwd (contiguous KV only), or a build that takes page tables."""

from __future__ import annotations

from typing import Any

import torch

from .merge import Part
from .peer import Skip, require_module, version_of

#: package, module, whether it takes page tables
_BUILDS = (
    ("flash-attn-3", "flash_attn_interface", True),
    ("sglang-kernel", "sgl_kernel.flash_attn", True),
    ("fa3-fwd", "fa3_fwd_interface", False),
)


class Fa3:
    """Of the builds that are there the first."""

    name, title = "fa3", "FlashAttention-3"
    splits = (0, 1, 8, 32)

    @property
    def packages(self) -> tuple[str, ...]:
        return tuple(name for name, _, _ in _BUILDS if version_of(name) != "unknown")

    def __init__(self) -> None:
        self._found: tuple[Any, bool] | None = None

    def load(self) -> None:
        for package, module, paged in _BUILDS:
            try:
                self._found = (require_module(package, module), paged)
                return
            except Skip as reason:
                last = reason
        raise last

    def pages(self) -> tuple[int, ...]:
        return (64, 16) if self._build[1] else ()

    @property
    def _build(self) -> tuple[Any, bool]:
        if self._found is None:
            self.load()
        return self._found

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, splits: int, causal: bool,
        table: torch.Tensor | None = None, kv_len: torch.Tensor | None = None,
    ) -> Part:  # fmt: skip
        library, _ = self._build
        options: dict[str, Any] = {}
        if table is not None:
            options = {"page_table": table, "cache_seqlens": kv_len}
        elif k.stride(0) == 0:  # one context for all
            k, v = k[:1], v[:1]
            options["cache_batch_idx"] = torch.zeros(len(q), dtype=torch.int32, device=q.device)
        out, lse, *_ = library.flash_attn_with_kvcache(
            q, k, v, return_softmax_lse=True, num_splits=splits, causal=causal, **options
        )
        return out, lse
