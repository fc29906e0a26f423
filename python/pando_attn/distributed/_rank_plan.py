"""The plan of one rank's part of a batch."""

from __future__ import annotations

from typing import Any

import torch

from .._plan import Plan
from .._spec import Spec


def rank_plan(spec: Spec, head_parts: int, share: str, device: Any, threads: int) -> Plan:
    """A plan that has yet to be made for a batch, of one of equal parts of the heads of ``spec``,
    which is that of the whole batch."""
    if spec.kv_heads % head_parts:
        raise ValueError(
            f"head_parts: got {head_parts}, want a divisor of kv_heads, {spec.kv_heads}"
        )
    if head_parts > 1 and spec.q_heads % max(spec.kv_heads, 1):
        raise ValueError(
            f"q_heads: got {spec.q_heads}, want a multiple of kv_heads, {spec.kv_heads}"
        )
    on = str(device)
    if on == "cuda":
        on = f"cuda:{torch.cuda.current_device()}"
    of_part = spec._replace(
        q_heads=spec.q_heads // head_parts,
        kv_heads=spec.kv_heads // head_parts,
        causal=False,  # what rows see comes as ranges of what the rank holds
        window=0,
    )
    return Plan(of_part, share=share, device=on, threads=threads)
