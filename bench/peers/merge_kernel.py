"""The Triton kernel of merge.py. No postponed annotations here: Triton reads them."""

import triton
import triton.language as tl


@triton.jit
def merge_pair(
    a, b, lse_a, lse_b, out, lse, count, heads,
    a_row, a_head, b_row, b_head, la_row, la_head, lb_row, lb_head,
    D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows x heads of two partial results, ``[count, D]``, of any strides; see merge.py."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    valid = at < count
    row, head = (at // heads).to(tl.int64), at % heads
    la = tl.load(lse_a + row * la_row + head * la_head, mask=valid, other=0.0).to(tl.float32)
    lb = tl.load(lse_b + row * lb_row + head * lb_head, mask=valid, other=0.0).to(tl.float32)
    largest = tl.maximum(la, lb)
    wa, wb = tl.exp(la - largest), tl.exp(lb - largest)
    total = wa + wb
    d = tl.arange(0, D)[None, :]
    x = tl.load(a + (row * a_row + head * a_head)[:, None] + d, mask=valid[:, None], other=0.0)
    y = tl.load(b + (row * b_row + head * b_head)[:, None] + d, mask=valid[:, None], other=0.0)
    merged = ((wa / total)[:, None] * x + (wb / total)[:, None] * y).to(out.dtype.element_ty)
    tl.store(out + at.to(tl.int64)[:, None] * D + d, merged, mask=valid[:, None])
    tl.store(lse + at, largest + tl.log(total), mask=valid)
