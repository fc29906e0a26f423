"""What vLLM asks a backend: what it supports, and which classes do the work."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import torch
from vllm.platforms import current_platform
from vllm.v1.attention.backend import AttentionBackend

from .._planning import plan
from ._impl import FP8_DTYPES, KV_CACHE_DTYPES, PandoImpl
from ._metadata import PandoMetadataBuilder


class PandoBackend(AttentionBackend):  # type: ignore[misc]
    """Attention over shared prefixes. K and V of a layer are ``[blocks, kv_heads, block_size,
    2 * head_size]``, K first, in any of vLLM's layouts."""

    forward_includes_kv_cache_update = False
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16, torch.float32]
    supported_kv_cache_dtypes: ClassVar[list[Any]] = list(KV_CACHE_DTYPES)

    @staticmethod
    def get_name() -> str:
        """A name of vLLM's registry."""
        return "CUSTOM"

    @staticmethod
    def get_impl_cls() -> type[PandoImpl]:
        return PandoImpl

    @staticmethod
    def get_builder_cls() -> type[PandoMetadataBuilder]:
        return PandoMetadataBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: Any = None) -> list[int]:
        """Where vLLM's own blocks are larger, it cuts them into these."""
        return [16, 32, 64, 128, 256]

    @classmethod
    def supports_head_size(cls, head_size: int) -> bool:
        return why_not(head_size, torch.float16) is None

    @classmethod
    def supports_combination(
        cls, head_size: int, dtype: torch.dtype, kv_cache_dtype: Any, *args: Any, **kwargs: Any
    ) -> str | None:
        return why_not(head_size, dtype, kv_cache_dtype in FP8_DTYPES)

    @classmethod
    def supports_compute_capability(cls, capability: Any) -> bool:
        return tuple(capability) == (9, 0)

    @classmethod
    def supports_sink(cls) -> bool:
        return True

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return True

    @classmethod
    def supports_per_head_quant_scales(cls) -> bool:
        return True

    @classmethod
    def supports_batch_invariance(cls) -> bool:
        return True

    @classmethod
    def supports_device_cpu_query_lens_mismatch(cls) -> bool:
        """Plans are made on the host, of the host's query lengths."""
        return False


@functools.cache
def why_not(head_size: int, dtype: torch.dtype, fp8: bool = False) -> str | None:
    """What Pando says against such heads on this platform, None when nothing; the same words that
    a plan would be refused with."""
    device = "cpu" if current_platform.is_cpu() else "h100"
    try:
        plan(
            [0],
            [],
            [0],
            [],
            16,
            q_heads=1,
            kv_heads=1,
            head_dim=head_size,
            dtype=dtype,
            kv_dtype="fp8" if fp8 else None,
            device=device,
        )
    except (NotImplementedError, ValueError) as error:
        return str(error)
    return None
