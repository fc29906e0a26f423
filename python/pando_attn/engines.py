"""Batches as inference engines hold them, made into what :func:`pando_attn.plan` takes.

    tables = pando_attn.engines.of_block_table(query_start_loc, seq_lens, block_table, 16)
    plan = pando_attn.plan(*tables, page_tokens=16, q_heads=32, kv_heads=8, head_dim=128)
    plan.update(*tables)                                  # in later steps

Integers may be lists, NumPy arrays, or tensors of PyTorch, JAX or CuPy on any device. Plans are
made on the host: what is on a device is copied, which waits for the work that was enqueued before.
An engine that has the host's copy, since it made the tables, gives that one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _arguments as arguments
from . import _arrays
from ._prefix import PageTables

__all__ = ["of_block_table", "of_page_indices", "of_token_slots"]


def of_block_table(
    query_start_loc: Any, seq_lens: Any, block_table: Any, page_tokens: int
) -> PageTables:
    """A padded table with a row for each sequence: vLLM, and FlashAttention's paged KV.

    Args:
        query_start_loc: ``[B+1]``, where the query rows of each sequence begin.
        seq_lens: ``[B]`` tokens of each sequence, with those whose queries are in the batch.
        block_table: ``[B, width]`` page ids, or more rows; what is past the end of a sequence is
            not read. Only as many columns are copied as the longest sequence has pages.
        page_tokens: tokens of a page.

    Raises:
        ValueError or TypeError that names the argument.
    """
    size = _page_tokens(page_tokens)
    kv_len = _lengths("seq_lens", seq_lens)
    q_indptr = _indptr("query_start_loc", query_start_loc, kv_len.size)
    block_table = _table("block_table", block_table)
    if len(block_table.shape) != 2:
        raise ValueError(f"block_table: got {len(block_table.shape)} dimensions, want 2")
    rows, width = block_table.shape
    used = -(-int(kv_len.max(initial=0)) // size)
    if rows < kv_len.size or width < used:
        raise ValueError(
            f"block_table: got shape ({rows}, {width}), want at least ({kv_len.size}, {used}) for "
            f"sequences of up to {kv_len.max(initial=0)} tokens"
        )
    ids = _ints("block_table", block_table[: kv_len.size, :used], ndim=2)
    return PageTables(q_indptr, kv_len, _even_indptr(kv_len.size, used), ids.reshape(-1))


def of_page_indices(
    qo_indptr: Any,
    kv_page_indptr: Any,
    kv_page_indices: Any,
    kv_last_page_len: Any,
    page_tokens: int,
) -> PageTables:
    """Page ids one sequence after the other, and how full the last page is: FlashInfer.

    Args:
        qo_indptr: ``[B+1]``, where the query rows of each sequence begin; None for decode, where
            each sequence has one.
        kv_page_indptr: ``[B+1]``, where the pages of each sequence begin.
        kv_page_indices: page ids.
        kv_last_page_len: ``[B]`` tokens in the last page of each sequence, 1 to ``page_tokens``;
            of a sequence without pages it is not read.
        page_tokens: tokens of a page.

    Raises:
        ValueError or TypeError that names the argument.
    """
    size = _page_tokens(page_tokens)
    last = _ints("kv_last_page_len", kv_last_page_len)
    indptr = _indptr("kv_page_indptr", kv_page_indptr, last.size)
    q_indptr = _row_indptr(qo_indptr, last.size)
    pages = np.diff(indptr)
    wrong = (pages > 0) & ((last < 1) | (last > size))
    if wrong.any():
        b = int(np.flatnonzero(wrong)[0])
        raise ValueError(f"kv_last_page_len: got {last[b]} of sequence {b}, want 1 to {size}")
    kv_len = np.where(pages > 0, (pages.astype(np.int64) - 1) * size + last, 0)
    if kv_len.max(initial=0) > np.iinfo(np.int32).max:
        raise ValueError(f"kv_page_indptr: got {kv_len.max()} tokens, want fewer than 2^31")
    ids = _ints("kv_page_indices", kv_page_indices)
    return PageTables(q_indptr, kv_len.astype(np.int32), indptr, ids)


def of_token_slots(
    qo_indptr: Any,
    seq_lens: Any,
    req_to_token: Any,
    req_pool_indices: Any,
    page_tokens: int = 1,
) -> PageTables:
    """A slot of the pool for each token of each request: SGLang.

    K and V of such a pool, ``[slots, kv_heads, head_dim]``, are those of :func:`pando_attn.attend`
    as ``k.view(-1, page_tokens, kv_heads, head_dim)``.

    Args:
        qo_indptr: ``[B+1]``, where the query rows of each sequence begin; None for decode, where
            each sequence has one.
        seq_lens: ``[B]`` tokens of each sequence, with those whose queries are in the batch.
        req_to_token: ``[requests, width]`` slots, by position.
        req_pool_indices: ``[B]``, the row of each sequence in ``req_to_token``.
        page_tokens: tokens of a page of the pool: position ``p`` of a sequence is in slot
            ``page * page_tokens + p % page_tokens``.

    Raises:
        ValueError or TypeError that names the argument.
    """
    size = _page_tokens(page_tokens)
    kv_len = _lengths("seq_lens", seq_lens)
    q_indptr = _row_indptr(qo_indptr, kv_len.size)
    req_to_token = _table("req_to_token", req_to_token)
    longest = int(kv_len.max(initial=0))
    if len(req_to_token.shape) != 2 or req_to_token.shape[1] < longest:
        raise ValueError(
            f"req_to_token: got shape {tuple(req_to_token.shape)}, want (requests, {longest} or "
            "more) for the longest sequence"
        )
    of = _ints("req_pool_indices", req_pool_indices)
    if of.size != kv_len.size or (
        of.size and not 0 <= of.min() <= of.max() < req_to_token.shape[0]
    ):
        raise ValueError(
            f"req_pool_indices: got {of.tolist()}, want {kv_len.size} rows of the "
            f"{req_to_token.shape[0]} of req_to_token"
        )
    # Only the slots where pages begin leave the device, and only of requests of the batch.
    slots = _ints("req_to_token", req_to_token[of, :longest:size], ndim=2)
    held = np.arange(slots.shape[1]) * size < kv_len[:, None]
    if (slots[held] % size).any():
        b, i = np.argwhere(held & (slots % size != 0))[0]
        raise ValueError(
            f"req_to_token: got slot {slots[b, i]} at position {i * size} of sequence {b}, want "
            f"the first slot of a page of {size} tokens"
        )
    page_indptr = _even_indptr(kv_len.size, slots.shape[1])
    return PageTables(q_indptr, kv_len, page_indptr, np.where(held, slots // size, 0).reshape(-1))


def _page_tokens(value: int) -> int:
    size = arguments.integer("page_tokens", value)
    if size < 1:
        raise ValueError(f"page_tokens: got {size}, want 1 or more")
    return size


def _ints(name: str, x: Any, ndim: int = 1) -> np.ndarray:
    return arguments.host_ints(name, _arrays.copied_to_host(x), ndim)


def _table(name: str, x: Any) -> Any:
    """Lists as an array; a tensor as it is, wherever it is."""
    return x if hasattr(x, "shape") else arguments.host_ints(name, x, ndim=2)


def _lengths(name: str, x: Any) -> np.ndarray:
    lengths = _ints(name, x)
    if lengths.min(initial=0) < 0:
        raise ValueError(f"{name}: got {lengths.min()}, want 0 or more")
    return lengths


def _even_indptr(count: int, each: int) -> np.ndarray:
    return np.arange(count + 1, dtype=np.int32) * np.int32(each)


def _row_indptr(qo_indptr: Any, count: int) -> np.ndarray:
    """Of decode, when it is None: each sequence has one row."""
    if qo_indptr is None:
        return _even_indptr(count, 1)
    return _indptr("qo_indptr", qo_indptr, count)


def _indptr(name: str, x: Any, count: int) -> np.ndarray:
    indptr = _ints(name, x)
    if indptr.size != count + 1:
        raise ValueError(f"{name}: got {indptr.size} numbers, want {count + 1}")
    if indptr[0] != 0 or (np.diff(indptr) < 0).any():
        raise ValueError(f"{name}: got {indptr.tolist()}, want numbers that rise from 0")
    return indptr
