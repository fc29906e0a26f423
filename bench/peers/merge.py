"""Combining partial results over disjoint tokens by their LSEs."""

from __future__ import annotations

import torch

Part = tuple[
    torch.Tensor, torch.Tensor
]  #: out ``[rows, heads, d]``, lse ``[rows, heads]``, natural


def merge_eager(parts: list[Part]) -> torch.Tensor:
    """In PyTorch's own operators and fp32: what Hydragen's paper describes."""
    lse = torch.stack([lse for _, lse in parts])
    weights = torch.softmax(lse, dim=0)
    merged = weights[0, ..., None] * parts[0][0]
    for weight, (out, _) in zip(weights[1:], parts[1:]):
        merged = torch.addcmul(merged, weight[..., None], out.to(merged.dtype))
    return merged.to(parts[0][0].dtype)


def merge_triton(parts: list[Part]) -> torch.Tensor:
    """Pairs in one small kernel each, the last of them first, as FlashInfer's cascade does; but
    in fp32 in between."""
    out, lse = parts[-1]
    for i in range(len(parts) - 2, -1, -1):
        dtype = torch.float32 if i > 0 else parts[0][0].dtype
        out, lse = _pair(out, lse, *parts[i], dtype)
    return out


def _pair(
    a: torch.Tensor, lse_a: torch.Tensor, b: torch.Tensor, lse_b: torch.Tensor, dtype: torch.dtype
) -> Part:
    rows, heads, head_dim = a.shape
    out = torch.empty((rows, heads, head_dim), dtype=dtype, device=a.device)
    lse = torch.empty((rows, heads), dtype=torch.float32, device=a.device)
    from .merge_kernel import merge_pair  # Triton is not everywhere

    block = 8
    merge_pair[((rows * heads + block - 1) // block,)](
        a, b, lse_a, lse_b, out, lse, rows * heads, heads,
        a.stride(0), a.stride(1), b.stride(0), b.stride(1),
        lse_a.stride(0), lse_a.stride(1), lse_b.stride(0), lse_b.stride(1),
        D=head_dim, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return out, lse


MERGES = {"eager": merge_eager, "triton": merge_triton}
