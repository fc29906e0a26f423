"""What context parallelism computes, and the plan of one rank's part of it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .. import _arguments as arguments
from .._plan import Plan


class Spec(NamedTuple):
    """What is computed; the same on all ranks."""

    page_tokens: int
    q_heads: int
    kv_heads: int
    head_dim: int
    dtype_code: int
    scale: float | None
    soft_cap: float
    causal: bool
    window: int

    def rank_plan(self, head_parts: int, share: str, device: Any, threads: int) -> Plan:
        """A plan that has yet to be made for a batch, of one of equal parts of the heads."""
        if self.kv_heads % head_parts:
            raise ValueError(
                f"head_parts: got {head_parts}, want a divisor of kv_heads, {self.kv_heads}"
            )
        if head_parts > 1 and self.q_heads % max(self.kv_heads, 1):
            raise ValueError(
                f"q_heads: got {self.q_heads}, want a multiple of kv_heads, {self.kv_heads}"
            )
        on = str(device)
        if on == "cuda":
            on = f"cuda:{torch.cuda.current_device()}"
        return Plan(
            page_tokens=self.page_tokens,
            q_heads=self.q_heads // head_parts,
            kv_heads=self.kv_heads // head_parts,
            head_dim=self.head_dim,
            dtype=arguments.DTYPES[self.dtype_code],
            scale=self.scale,
            soft_cap=self.soft_cap,
            causal=False,  # what rows see comes as ranges of what the rank holds
            window=0,
            share=share,
            batch_invariant=False,
            cut_tokens=512,
            device=on,
            threads=threads,
        )
