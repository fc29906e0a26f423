"""Merging partial results over disjoint tokens of the same rows by their LSEs."""

from __future__ import annotations

import sys
from typing import Any

from . import _native

_LOWEST = -3.0e38  # stands for -inf: two of these have a difference, which is 0


def merge_parts(parts: Any, lses: Any, out: Any, lse: Any, dtype_code: int, device: str) -> None:
    """``lse = ln sum_i e^lse_i`` and ``out = sum_i e^(lse_i - lse) parts_i``, in fp32 and in order.

    The rule is that of ``pando/merge.h``: a part of -inf is empty, and so is a merge of such parts.
    On the host it is that code. On CUDA it is the same in operators of PyTorch, which can be
    captured in a CUDA graph; there an empty part must hold finite numbers, as that of
    :func:`pando_attn.attend` does.

    Args:
        parts: ``[n, rows, heads, head_dim]``, head_dim contiguous.
        lses: fp32 ``[n, rows, heads]``, heads contiguous.
        out: ``[rows, heads, head_dim]``, of the dtype of parts.
        lse: fp32 ``[rows, heads]``, contiguous; or None.
        dtype_code: of parts and out; bf16 of NumPy comes as bits.
        device: "cpu", or where tensors of PyTorch are.
    """
    torch = sys.modules.get("torch")
    if device == "cpu":
        bits = torch is None or not isinstance(parts, torch.Tensor)
        _native.merge_parts(parts, lses, out, lse, dtype_code, bits)
        return
    assert torch is not None  # whose tensors these are
    weights = torch.softmax(lses.clamp_min(_LOWEST), 0)
    out.copy_((parts * weights.unsqueeze(-1)).sum(0).view(out.shape))
    if lse is not None:
        lse.copy_(torch.logsumexp(lses, 0).view(lse.shape))
