"""The merge of partials of levels and of ranks, on the CPU and on a GPU."""

import numpy as np
import pytest

from pando_attn._arguments import dtype_code
from pando_attn._merge import merge_parts

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

HALVES = [torch.bfloat16, torch.float16]
CASES = [("cpu", dtype) for dtype in (torch.float32, *HALVES)] + [
    pytest.param("cuda:0", dtype, marks=pytest.mark.cuda) for dtype in HALVES
]


def partials(device, dtype, count, rows, heads, head_dim, pad):
    """Strided; of row 0 all parts are empty, and of the others one in three. Empties hold NaN."""
    generator = torch.Generator().manual_seed(count)
    parts = torch.randn(count, rows + 1, heads, head_dim + pad, generator=generator).to(dtype)
    lses = 5 * torch.randn(count, rows + 2, heads, generator=generator)
    empty = torch.zeros(lses.shape, dtype=torch.bool)
    empty[:, 0] = True
    empty.view(-1)[::3] = True
    lses[empty] = -torch.inf
    parts[empty[:, : rows + 1]] = torch.nan
    parts, lses = parts.to(device), lses.to(device)
    return parts[:, :rows, :, :head_dim], lses[:, :rows]


def exact(parts, lses):
    """In fp64."""
    parts, lses = (x.double().cpu().numpy() for x in (parts, lses))
    top = np.where(np.isfinite(lses.max(0)), lses.max(0), 0)
    weights = np.exp(lses - top)
    sums = weights.sum(0)
    with np.errstate(divide="ignore"):
        lse = top + np.log(sums)
    weights = weights / np.where(sums > 0, sums, 1)
    return (np.where(weights[..., None] > 0, parts, 0) * weights[..., None]).sum(0), lse


@pytest.mark.parametrize(("device", "dtype"), CASES)
@pytest.mark.parametrize(
    ("count", "rows", "heads", "head_dim", "pad"),
    [(2, 64, 32, 128, 0), (3, 5, 2, 64, 8), (9, 7, 3, 8, 16), (1, 1, 1, 128, 0), (2, 0, 4, 64, 0)],
)
def test_merge_is_that_of_fp64(device, dtype, count, rows, heads, head_dim, pad):
    parts, lses = partials(device, dtype, count, rows, heads, head_dim, pad)
    room = torch.full((rows, heads + 1, head_dim), 7.0, device=device, dtype=dtype)
    out, lse = room[:, :heads], torch.empty(rows, heads, device=device)
    merge_parts(parts, lses, out, lse, dtype_code(dtype), device)
    want, want_lse = exact(parts, lses)
    # One rounding, and those of the weights: of an LSE of up to 20 in fp32, once for each part.
    eps = torch.finfo(dtype).eps + 20 * count * torch.finfo(torch.float32).eps
    assert np.abs(out.double().cpu().numpy() - want).max(initial=0) <= eps * max(
        np.abs(want).max(initial=0), 1
    )
    seen = np.isfinite(want_lse)
    got_lse = lse.cpu().numpy()
    assert (got_lse[~seen] == -np.inf).all()
    assert np.abs(got_lse[seen] - want_lse[seen]).max(initial=0) <= 1e-5
    assert (room[:, heads:] == 7).all()
    again = torch.empty_like(out)
    merge_parts(parts, lses, again, None, dtype_code(dtype), device)
    assert torch.equal(again, out)


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("dtype", "head_dim", "pad", "text"),
    [
        (torch.float32, 64, 0, "dtype: got fp32 on CUDA"),
        (torch.bfloat16, 12, 0, "head_dim: got 12"),
        (torch.bfloat16, 64, 4, "parts: got a stride of 68 elements"),
    ],
)
def test_what_the_kernel_does_not_take_is_refused(dtype, head_dim, pad, text):
    parts, lses = partials("cuda:0", dtype, 2, 3, 2, head_dim, pad)
    out = torch.empty(parts.shape[1:], device="cuda:0", dtype=dtype)
    with pytest.raises(NotImplementedError, match=text):
        merge_parts(parts, lses, out, None, dtype_code(dtype), "cuda:0")
