"""Merging partial results over disjoint tokens of the same rows by their LSEs."""

from __future__ import annotations

import sys
from typing import Any

from . import _arrays, _native
from ._arguments import device_of


def merge_parts(
    parts: Any,
    lses: Any,
    out: Any,
    lse: Any,
    dtype_code: int,
    device: str,
    stream: int = _arrays.FRAMEWORKS_STREAM,
) -> None:
    """``lse = ln sum_i e^lse_i`` and ``out = sum_i e^(lse_i - lse) parts_i``, in fp32 and in order.

    The rule and its code are those of ``pando/merge.h``: a part of -inf is empty and is not read,
    and a merge of such parts is empty. On CUDA it is one launch.

    Args:
        parts: ``[n, rows, heads, head_dim]``, head_dim contiguous.
        lses: fp32 ``[n, rows, heads]``, heads contiguous.
        out: ``[rows, heads, head_dim]``, of the dtype of parts.
        lse: fp32 ``[rows, heads]``, contiguous; or None.
        dtype_code: of parts and out; bf16 of NumPy comes as bits.
        device: "cpu" or "cuda:N", of all of them.
        stream: of CUDA; that of the tensors' framework by default.
    """
    name, index = device_of(device)
    torch = sys.modules.get("torch")
    bits = torch is None or not isinstance(parts, torch.Tensor)
    _native.merge_parts(
        parts, lses, out, lse, dtype_code, bits, index if name == "cuda" else -1, stream
    )
