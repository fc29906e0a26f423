"""Batches as engines hold them."""

import numpy as np
import pytest
from batch import Batch

import pando_attn
from pando_attn import engines

SIZE = 16


def batch():
    """Three sequences of two shared pages, and one of its own."""
    return Batch(kv_lens=[40, 61, 33, 16], q_lens=[1, 3, 0, 2], prefix=1)


def block_table(of, width=7, fill=-7):
    """What is past the end of a sequence is no page."""
    table = np.full((len(of.kv_lens) + 2, width), fill, np.int32)
    for row, pages in zip(table, of.tables):
        row[: len(pages)] = pages
    return table


def slots(of, size=SIZE):
    """A pool of requests, in another order than the batch: SGLang's req_to_token."""
    rows = np.array([5, 0, 3, 2], np.int32)
    pool = np.full((7, 80), -1, np.int32)
    for row, pages, kv_len in zip(rows, of.tables, of.kv_lens):
        pool[row, :kv_len] = [pages[p // size] * size + p % size for p in range(kv_len)]
    return pool, rows


def check(of, tables):
    """The tables give the plan and the answer of the batch."""
    options = {"q_heads": of.q_heads, "kv_heads": of.kv_heads, "head_dim": of.head_dim}
    plan = pando_attn.plan(*tables, page_tokens=SIZE, dtype="fp32", **options)
    assert plan.segments() == of.plan().segments()
    of.answer().check(pando_attn.attend(plan, of.q, of.k, of.v))
    plan.update(*tables)


def test_block_tables_of_vllm():
    of = batch()
    table = block_table(of)
    check(of, engines.of_block_table(of.q_indptr, of.kv_lens, table, SIZE))
    check(of, engines.of_block_table(of.q_indptr.tolist(), of.kv_lens, table.tolist(), SIZE))
    wide = engines.of_block_table(of.q_indptr, of.kv_lens, table, SIZE)
    assert wide.page_ids.size == len(of.kv_lens) * 4  # columns that nobody has are left out


def test_page_indices_of_flashinfer():
    of = batch()
    last = [(n - 1) % SIZE + 1 for n in of.kv_lens]
    check(of, engines.of_page_indices(of.q_indptr, of.page_indptr, of.page_ids, last, SIZE))


def test_token_slots_of_sglang():
    of = batch()
    check(of, engines.of_token_slots(of.q_indptr, of.kv_lens, *slots(of), SIZE))


def test_token_slots_are_pages_of_one_token_by_default():
    of = Batch(kv_lens=[9, 12, 5], q_lens=[1, 1, 1], prefix=4, page_tokens=1)
    pool = np.full((3, 12), -1, np.int32)
    for row, pages in zip(pool, of.tables):
        row[: len(pages)] = pages
    tables = engines.of_token_slots(None, of.kv_lens, pool, [0, 1, 2])
    assert tables.q_indptr.tolist() == [0, 1, 2, 3]  # a decode step
    plan = pando_attn.plan(*tables, page_tokens=1, q_heads=4, kv_heads=2, head_dim=64, dtype="fp32")
    of.answer().check(pando_attn.attend(plan, of.q, of.k, of.v))


def test_batches_of_nothing():
    no_table = np.zeros((0, 0), np.int32)
    for tables in (
        engines.of_block_table([0], [], no_table, SIZE),
        engines.of_page_indices([0], [0], [], [], SIZE),
        engines.of_token_slots([0], [], no_table, [], SIZE),
    ):
        plan = pando_attn.plan(*tables, page_tokens=SIZE, q_heads=2, kv_heads=1, head_dim=64)
        assert (plan.sequences, plan.q_rows) == (0, 0)
    tables = engines.of_page_indices(None, [0, 0, 1], [3], [99, 5], SIZE)
    assert tables.kv_len.tolist() == [0, 5]  # of no page nothing is the last


@pytest.mark.torch
def test_tensors_of_pytorch():
    torch = pytest.importorskip("torch")
    of = batch()
    table = torch.from_numpy(block_table(of))
    rows, lengths = torch.from_numpy(of.q_indptr), torch.tensor(of.kv_lens)  # int64 too
    check(of, engines.of_block_table(rows, lengths, table, SIZE))
    pool, of_batch = map(torch.from_numpy, slots(of))
    check(of, engines.of_token_slots(rows, lengths, pool, of_batch, SIZE))


@pytest.mark.cuda
@pytest.mark.torch
def test_tables_on_a_device():
    torch = pytest.importorskip("torch")
    of = batch()
    rows, lengths, table = (
        torch.as_tensor(x, device="cuda") for x in (of.q_indptr, of.kv_lens, block_table(of))
    )
    check(of, engines.of_block_table(rows, lengths, table, SIZE))
    pool, of_batch = (torch.from_numpy(x).cuda() for x in slots(of))
    check(of, engines.of_token_slots(rows, lengths, pool, of_batch, SIZE))


def refusals():
    of = batch()
    table = block_table(of)
    rows, lengths = of.q_indptr, of.kv_lens
    pool, of_batch = slots(of)
    moved = pool + 1
    block, indices, tokens = (
        engines.of_block_table,
        engines.of_page_indices,
        engines.of_token_slots,
    )
    return [
        (r"query_start_loc: got 4 numbers, want 5", block, (rows[:-1], lengths, table, SIZE)),
        (r"query_start_loc: got \[1, 2.*rise from 0", block, (rows + 1, lengths, table, SIZE)),
        (r"seq_lens: got -1, want 0", block, (rows, [-1, 1, 1, 1], table, SIZE)),
        (
            r"block_table: got shape \(6, 3\), want at least \(4, 4\)",
            block,
            (rows, lengths, table[:, :3], SIZE),
        ),
        (r"block_table: got 1 dimensions, want 2", block, (rows, lengths, table[0], SIZE)),
        (r"page_tokens: got 0, want 1", block, (rows, lengths, table, 0)),
        (
            r"kv_last_page_len: got 17 of sequence 1, want 1 to 16",
            indices,
            (rows, of.page_indptr, of.page_ids, [8, 17, 1, 16], SIZE),
        ),
        (
            r"kv_page_indptr: got 4 numbers, want 5",
            indices,
            (rows, of.page_indptr[1:], of.page_ids, [8, 1, 1, 16], SIZE),
        ),
        (
            r"req_pool_indices: got \[0, 1, 2, 7\], want 4 rows of the 7",
            tokens,
            (rows, lengths, pool, [0, 1, 2, 7], SIZE),
        ),
        (
            r"req_to_token: got shape \(7, 20\), want \(requests, 61 or more\)",
            tokens,
            (rows, lengths, pool[:, :20], of_batch, SIZE),
        ),
        (
            r"req_to_token: got slot \d+ at position 0 of sequence 0, want the first slot",
            tokens,
            (rows, lengths, moved, of_batch, SIZE),
        ),
    ]


@pytest.mark.parametrize("message, function, arguments", refusals())
def test_what_is_refused(message, function, arguments):
    with pytest.raises(ValueError, match=message):
        function(*arguments)
