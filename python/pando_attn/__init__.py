"""Attention over batches whose sequences share KV: page tables in, every shared byte read once.

    plan = pando_attn.plan(q_indptr, kv_len, page_indptr, page_ids, page_tokens=16,
                           q_heads=32, kv_heads=8, head_dim=128, dtype="bf16")
    out = pando_attn.attend(plan, q, k_cache, v_cache)

:func:`plan` and :func:`attend` are for those who hold paged KV. :func:`shared_prefix_attention`
does it all for plain contiguous tensors; :mod:`pando_attn.engines` takes batches as vLLM,
FlashInfer and SGLang hold them. :class:`KvPool` and :class:`PrefixTree` keep page tables
for those who have no engine. :func:`generate` samples from models of Hugging Face Transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import engines
from ._arguments import device_of as _device_of
from ._attend import attend
from ._native import OutOfPages, cuda_devices, cuda_unavailable, simd_name
from ._native import variants as _variants
from ._native import version as _version
from ._plan import Plan, Segment
from ._planning import plan
from ._prefix import Added, Appended, KvPool, PageCopy, PageTables, PrefixTree
from ._quantize import QuantizeError, quantize_fp8
from ._shared_prefix import shared_prefix_attention

if TYPE_CHECKING:
    from .transformers import generate as generate

__version__ = _version()

__all__ = [
    "Added",
    "Appended",
    "KvPool",
    "OutOfPages",
    "PageCopy",
    "PageTables",
    "Plan",
    "PrefixTree",
    "QuantizeError",
    "Segment",
    "attend",
    "cuda_devices",
    "cuda_unavailable",
    "engines",
    "plan",
    "quantize_fp8",
    "shared_prefix_attention",
    "simd_name",
    "variants",
]


def variants(device: str = "cpu") -> tuple[str, ...]:
    """Names of the arguments that ask for variants of attention and that a device supports, such as
    "window" and "soft_cap", with a value where only one is meant: "kv_dtype=fp8". ``device`` is
    "cpu", "cuda", or "h100", which is only planned for."""
    return tuple(_variants(0 if _device_of(device)[0] == "cpu" else 1).split(", "))


def __getattr__(name: str) -> Any:
    if name == "generate":  # needs PyTorch and Transformers, which nothing else here does
        from .transformers import generate

        return generate
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
