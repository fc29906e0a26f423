"""Attention over KV that lies on several ranks: context parallelism, on torch.distributed.

    from pando_attn.distributed import ContextParallel

    cp = ContextParallel()                      # the default process group; NCCL or gloo
    mine = cp.plan(q_indptr, kv_len, page_indptr, page_ids, page_tokens=64,
                   q_heads=32, kv_heads=8, head_dim=128, dtype="bf16", device="cuda")
    # mine.pages: which pages this rank holds, in the order of its own k_cache and v_cache
    out = cp.attend(q, k_cache, v_cache)        # all rows, on every rank

Each page of KV lies on one rank. Every rank holds q of all sequences, attends to the tokens that it
holds, and one collective brings the partial results together, which merge exactly by their LSEs.
:func:`place` says which rank holds which page; it and ``python -m pando_attn.distributed``, which
puts a shape on 2 to 1024 ranks on paper, need NumPy alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ._batch import RankBatch
from ._placement import Placement, place

if TYPE_CHECKING:
    from ._context_parallel import ContextParallel as ContextParallel

__all__ = ["ContextParallel", "Placement", "RankBatch", "place"]


def __getattr__(name: str) -> Any:
    if name == "ContextParallel":  # needs PyTorch
        from ._context_parallel import ContextParallel

        return ContextParallel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
