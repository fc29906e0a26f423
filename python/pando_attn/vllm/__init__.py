"""Pando as an attention backend of vLLM.

    vllm serve MODEL --attention-backend CUSTOM     # on a GPU, where pando-attn is installed
    PANDO_VLLM_CPU=1 vllm serve MODEL               # with a build of vLLM for the CPU

vLLM finds :func:`register` by its entry point, in each of its processes. The prefixes that requests
share are found from vLLM's own block tables, as its prefix caching makes them, and are read once.
What is supported and what is refused: docs/vllm.md. Written for vLLM 0.32 and 0.33.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

__all__ = ["register"]

_BACKEND = "pando_attn.vllm._backend.PandoBackend"


def register() -> None:
    """Makes ``--attention-backend CUSTOM`` of vLLM this one; vLLM calls it as it starts.

    On the CPU vLLM knows one backend, and asks for no other: with ``PANDO_VLLM_CPU=1`` in the
    environment this one takes its place. May be called any number of times. Where another plug-in
    is CUSTOM already it stays that, and an older vLLM starts without this one; with a warning.
    """
    try:
        from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
    except ImportError as error:  # must not keep vLLM from starting
        warnings.warn(
            "vllm: got a version without a registry of attention backends, want 0.32 or later; "
            f"pando_attn is none of its backends ({error})",
            stacklevel=2,
        )
        return
    custom: Any = AttentionBackendEnum.CUSTOM
    if custom.is_overridden() and custom.get_path() != _BACKEND:
        warnings.warn(
            f"attention backend CUSTOM: got {custom.get_path()} already, not pando_attn; "
            "VLLM_PLUGINS names the plug-ins that are loaded",
            stacklevel=2,
        )
    else:
        register_backend(custom, _BACKEND)
    if os.environ.get("PANDO_VLLM_CPU") == "1":
        register_backend(AttentionBackendEnum.CPU_ATTN, _BACKEND)
