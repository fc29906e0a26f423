"""KvPool and PrefixTree."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import oracle
import pytest

import pando_attn


def test_pool_counts_references():
    pool = pando_attn.KvPool(2, 16)
    page = pool.allocate()
    pool.retain(page)
    pool.release(page)
    assert pool.references(page) == 1 and pool.free_pages == 1
    pool.allocate()
    with pytest.raises(pando_attn.OutOfPages, match="page"):
        pool.allocate()
    with pytest.raises(ValueError, match="page"):
        pool.release(7)


def test_references_of_a_tree_are_not_released_by_others():
    pool = pando_attn.KvPool(4, 4)
    tree = pando_attn.PrefixTree(pool)
    page = int(tree.pages(tree.add([1]).sequence)[0])
    with pytest.raises(ValueError, match=f"page: got {page}, which only prefix trees hold"):
        pool.release(page)
    del tree
    assert pool.free_pages == 4


def test_tree_shares_whole_pages_and_copies_half_full_ones():
    tree = pando_attn.PrefixTree(pando_attn.KvPool(16, 4))
    first = tree.add(range(10))
    assert first.cached_tokens == 0 and tree.length(first.sequence) == 10
    second = tree.add([*range(8), 99])
    assert second.cached_tokens == 8 and tree.match(range(10)) == 8
    fork = tree.fork(first.sequence)
    assert np.array_equal(tree.pages(fork), tree.pages(first.sequence))
    appended = tree.append(fork, 7)
    assert appended.slot == 2 and appended.copy.tokens == 2
    assert appended.copy.source == tree.pages(first.sequence)[2]
    assert appended.copy.target == appended.page == tree.pages(fork)[2]
    assert tree.append(fork, 8).copy is None
    tables = tree.tables([first.sequence, second.sequence, fork], q_lens=[1, 0, 2])
    assert tables.kv_len.tolist() == [10, 9, 12]
    assert tables.q_indptr.tolist() == [0, 1, 1, 3]
    assert tables.page_indptr.tolist() == [0, 3, 6, 9]
    for sequence in (first.sequence, second.sequence, fork):
        tree.release(sequence)
    assert tree.live_sequences == 0 and tree.cached_pages > 0
    assert tree.evict(100) == tree.evicted_pages > 0 and tree.cached_pages == 0
    with pytest.raises(ValueError, match="sequence"):
        tree.length(fork)


def test_tree_decodes_samples_of_one_prompt():
    """A decode loop as ChunkAttention's: add, fork, append, attend; checked at every step."""
    rng = np.random.default_rng(1)
    pool = pando_attn.KvPool(40, 4)
    tree = pando_attn.PrefixTree(pool)
    k = np.full((40, 4, 2, 16), np.nan, np.float32)
    v = np.full_like(k, np.nan)
    history = {}

    def store(page, slot, sequence):
        new = rng.standard_normal((2, 2, 16), np.float32)
        k[page, slot], v[page, slot] = new
        history[sequence].append(new)

    prompt = tree.add(range(22)).sequence
    history[prompt] = []
    for position in range(22):
        store(tree.pages(prompt)[position // 4], position % 4, prompt)
    samples = [prompt]
    for _ in range(3):
        samples.append(tree.fork(prompt))
        history[samples[-1]] = list(history[prompt])
    plan = None
    for step in range(6):
        for sequence in samples:
            page, slot, copy = tree.append(sequence, 100 + step)
            if copy:
                k[copy.target, : copy.tokens] = k[copy.source, : copy.tokens]
                v[copy.target, : copy.tokens] = v[copy.source, : copy.tokens]
            store(page, slot, sequence)
        tables = tree.tables(samples)
        if plan is None:
            options = {"q_heads": 2, "kv_heads": 2, "head_dim": 16, "dtype": "fp32"}
            plan = pando_attn.plan(*tables, 4, share="all", **options)
        else:
            plan.update(*tables, changed=[])
        q = rng.standard_normal((4, 2, 16), np.float32)
        out, lse = pando_attn.attend(plan, q, k, v, return_lse=True)
        answers = []
        for b, sequence in enumerate(samples):
            own = np.stack(history[sequence])
            visible = [(0, len(own))]
            answers.append(oracle.rows(q[b : b + 1], own[:, 0], own[:, 1], visible))
        oracle.together(answers).check(out, lse)
    assert plan.segments()[0].sequences == 4


def test_sequences_are_a_list():
    tree = pando_attn.PrefixTree(pando_attn.KvPool(4, 16))
    with pytest.raises(TypeError, match="sequences: got int, want a list of sequences"):
        tree.tables(5)


def test_query_rows_of_tables_are_fewer_than_two_to_the_31():
    tree = pando_attn.PrefixTree(pando_attn.KvPool(4, 16))
    sequences = [tree.add([1]).sequence, tree.add([2]).sequence]
    with pytest.raises(ValueError, match="q_lens: got 4294967294 query rows"):
        tree.tables(sequences, q_lens=[2**31 - 1] * 2)
    assert tree.tables(sequences, q_lens=[2**31 - 2, 1]).q_indptr[-1] == 2**31 - 1


def test_tables_are_of_one_moment_beside_appends():
    tree = pando_attn.PrefixTree(pando_attn.KvPool(4000, 1))
    sequence = tree.add([1]).sequence

    def append():
        for token in range(3000):
            tree.append(sequence, token)

    with ThreadPoolExecutor(1) as threads:
        appends = threads.submit(append)
        while not appends.done():
            tables = tree.tables([sequence])
            assert tables.kv_len[0] == tables.page_indptr[1] == len(tables.page_ids)
        appends.result()
    assert tree.length(sequence) == 3001
