"""A plan in one call."""

from __future__ import annotations

import os
from typing import Any

from ._plan import Plan
from ._spec import Spec


def plan(
    q_indptr: Any,
    kv_len: Any,
    page_indptr: Any,
    page_ids: Any,
    page_tokens: int,
    *,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    dtype: Any = "bf16",
    kv_dtype: Any = None,
    scale: float | None = None,
    causal: bool = True,
    window: int = 0,
    soft_cap: float = 0.0,
    visible: Any = None,
    tree_mask: Any = None,
    share: str = "auto",
    batch_invariant: bool = False,
    cut_tokens: int = 512,
    device: Any = "cpu",
    threads: int = 0,
    profile: str | os.PathLike[str] | None = None,
) -> Plan:
    """Finds what the sequences of a batch share, from their page tables alone, and plans attention.

    Sequence ``b`` of ``B`` owns query rows ``[q_indptr[b], q_indptr[b+1])`` and the first
    ``kv_len[b]`` tokens of the pages ``page_ids[page_indptr[b] : page_indptr[b+1]]``. These four
    are integers in host memory: lists, NumPy arrays or CPU tensors.

    Args:
        q_indptr: ``[B+1]``, starts at 0, never decreases.
        kv_len: ``[B]`` tokens; 0 is allowed.
        page_indptr: ``[B+1]``; or None when ``page_ids`` is a block table ``[B, width]``.
        page_ids: pages of K and V, each in ``[0, num_pages)``. Entries past the end of a sequence
            are never read.
        page_tokens: tokens of a page, a power of two up to 256.
        q_heads: query heads, a multiple of ``kv_heads``: head ``h`` reads kv head
            ``h // (q_heads // kv_heads)``.
        kv_heads: heads of K and V.
        head_dim: elements of a head; CPU: a multiple of 8 up to 256; CUDA: 64, 128 or 256, with
            fp8 KV 64 or 128.
        dtype: of q and the output, and of K and V unless kv_dtype says otherwise: "fp32", "bf16" or
            "fp16", or a dtype of NumPy, PyTorch or JAX. Sums, softmax and LSE are always fp32.
        kv_dtype: "fp8", or ``float8_e4m3fn`` of PyTorch or ml_dtypes, for K and V of one byte an
            element, with scales that :func:`attend` is given; None: as dtype. CUDA: of head_dim 64
            pages have 2 tokens or more.
        scale: of the scores; ``1 / sqrt(head_dim)`` by default.
        causal: query rows are the last tokens of their sequence, and see what is before them.
        window: a row sees its last ``window`` positions; 0: all of them.
        soft_cap: scores become ``soft_cap * tanh(score / soft_cap)`` after ``scale`` and before the
            mask; 0: no cap.
        visible: ``[q_rows, 2]``: the kv positions ``[begin, end)`` that each row sees. Replaces
            ``causal``.
        tree_mask: ``[q_rows]`` integers of 64 bits: the query rows of a sequence, 64 at most, are a
            tree of draft tokens. A row sees query token ``j`` of its sequence where bit ``j`` is
            set, and all positions before the query tokens. Replaces ``causal``.
        share: "auto" shares a segment where the cost model says that it pays; "none"; "all".
        batch_invariant: the bits of a sequence's output do not depend on the rest of the batch, nor
            on what is shared.
        cut_tokens: where batch-invariant plans cut every sequence, a multiple of ``page_tokens``.
        device: "cpu", "cuda", "cuda:N", or "h100" for a plan that is only looked at.
        threads: of the CPU; 0: one for each core.
        profile: a file of ``pando calibrate``: the device's own numbers instead of the stored ones.

    Returns:
        A :class:`Plan`, for any number of calls of :func:`attend`.

    Raises:
        ValueError: an argument is wrong; TypeError: it has the wrong type or is not in host memory;
        NotImplementedError: it is right, but not supported. The message names the argument.
    """
    spec = Spec.of(
        page_tokens,
        q_heads=q_heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        dtype=dtype,
        kv_dtype=kv_dtype,
        scale=scale,
        soft_cap=soft_cap,
        causal=causal,
        window=window,
    )
    made = Plan(
        spec,
        share=share,
        batch_invariant=batch_invariant,
        cut_tokens=cut_tokens,
        device=device,
        threads=threads,
        profile=profile,
    )
    made.update(q_indptr, kv_len, page_indptr, page_ids, visible=visible, tree_mask=tree_mask)
    return made
