"""fp8 of tensors of PyTorch, on any device; :func:`pando_attn.quantize_fp8` is for host memory."""

from __future__ import annotations

import torch

LARGEST = torch.finfo(torch.float8_e4m3fn).max


def to_fp8(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Bytes of ``x ~ scale * fp8``, to the nearest; what is too large saturates, NaN stays NaN.

    Bytes, since few operations of PyTorch know fp8. Nothing here waits for the device.
    """
    codes = (x.float() / scale).clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return codes.view(torch.uint8)


def from_fp8(codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What the bytes of :func:`to_fp8` stand for."""
    return (codes.view(torch.float8_e4m3fn).float() * scale).to(dtype)
