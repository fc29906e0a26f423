"""FlashAttention-4 (CuTe), which is compiled on its first call."""

from __future__ import annotations

from typing import Any

import torch

from .merge import Part
from .peer import require_module


class Fa4:
    """On Hopper it has no splits: a long context and few rows leave most of the GPU idle."""

    name, title = "fa4", "FlashAttention-4 (CuTe)"
    packages = ("flash-attn-4", "nvidia-cutlass-dsl")
    splits = (1,)

    def load(self) -> None:
        self._library()

    def pages(self) -> tuple[int, ...]:
        return (64,)

    def _library(self) -> Any:
        return require_module("flash-attn-4", "flash_attn.cute")

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, splits: int, causal: bool,
        table: torch.Tensor | None = None, kv_len: torch.Tensor | None = None,
    ) -> Part:  # fmt: skip
        library = self._library()
        options = {"causal": causal, "num_splits": splits, "return_lse": True}
        if table is None:
            return library.flash_attn_func(q, k, v, **options)[:2]
        return library.flash_attn_varlen_func(
            q, k, v, page_table=table, seqused_k=kv_len, **options
        )[:2]
