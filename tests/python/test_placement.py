"""Which rank holds which page, and what a batch looks like from there; no group is needed."""

import numpy as np
import oracle
import pytest
from batch import Batch
from hypothesis import given, settings
from hypothesis import strategies as st

import pando_attn
from pando_attn.distributed import place


def placed(batch: Batch, ranks: int, **options):
    tables = (batch.kv_lens, batch.page_indptr, batch.page_ids, batch.page_tokens)
    return place(*tables, ranks, **options)


def seen(batch: Batch, placement, rank: int):
    tables = (batch.q_indptr, batch.kv_lens, batch.page_indptr, batch.page_ids)
    masks = {k: v for k, v in batch.options.items() if k in ("causal", "window", "visible")}
    return placement.batch(rank, *tables, **masks)


def merged(batch: Batch, placement):
    """Each rank's part by attend on its own pages, merged in fp64 by the formula."""
    parts = []
    for rank in range(placement.ranks):
        mine = seen(batch, placement, rank)
        plan = pando_attn.plan(
            *mine[:5],
            q_heads=batch.q_heads,
            kv_heads=batch.kv_heads,
            head_dim=batch.head_dim,
            dtype=batch.dtype,
            visible=mine.visible,
        )
        assert len(mine.pages) == mine.num_pages
        k, v = (x[mine.pages] for x in (batch.k, batch.v))
        parts.append(pando_attn.attend(plan, batch.q, k, v, return_lse=True))
    outs, lses = (np.stack([p[i].astype(np.float64) for p in parts]) for i in (0, 1))
    top = np.where(np.isfinite(lses.max(0)), lses.max(0), 0)
    sums = np.exp(lses - top).sum(0)
    with np.errstate(divide="ignore"):
        lse = top + np.log(sums)
    weights = np.where(sums > 0, np.exp(lses - top) / np.where(sums > 0, sums, 1), 0)
    return (outs * weights[..., None]).sum(0), lse


BATCHES = {
    "ragged": Batch([133, 140, 129, 200, 1], [1, 2, 1, 1, 1], prefix=8),
    "unshared": Batch([37, 5, 64, 100], [1, 1, 3, 1]),
    "empty": Batch([0, 48, 0], [1, 1, 1], prefix=0),
    "no rows": Batch([40, 50], [0, 1], prefix=1),
    "several rows": Batch([130, 150], [17, 30], prefix=4),
    "window": Batch([133, 140, 300], [1, 5, 1], prefix=8, options={"window": 50}),
    "not causal": Batch([133, 140], [2, 3], prefix=8, options={"causal": False}),
    "ranges": Batch(
        [133, 140],
        [2, 1],
        prefix=8,
        options={"visible": np.array([[3, 133], [60, 61], [139, 500]], np.int32)},
    ),
    "pages of 1": Batch([13, 40, 9], [1, 1, 1], prefix=5, page_tokens=1),
}


@pytest.mark.parametrize("ranks", [1, 2, 3, 7, 40])
@pytest.mark.parametrize("name", BATCHES)
def test_parts_of_all_ranks_merge_to_the_whole(name, ranks):
    batch = BATCHES[name]
    batch.answer().check(*merged(batch, placed(batch, ranks)))


@settings(max_examples=40, deadline=None)
@given(
    kv_lens=st.lists(st.integers(0, 90), min_size=1, max_size=6),
    prefix=st.integers(0, 6),
    ranks=st.integers(1, 6),
    page_tokens=st.sampled_from([1, 4, 16]),
    window=st.sampled_from([0, 1, 17]),
    seed=st.integers(0, 3),
)
def test_any_batch_merges_to_the_whole(kv_lens, prefix, ranks, page_tokens, window, seed):
    q_lens = [(seed + b) % 3 if n else 0 for b, n in enumerate(kv_lens)]
    batch = Batch(
        kv_lens,
        [min(q, n) for q, n in zip(q_lens, kv_lens)],
        prefix,
        page_tokens,
        head_dim=8,
        seed=seed,
        options={"window": window},
    )
    placement = placed(batch, ranks)
    assert placement.tokens.sum() == sum(tokens_of_pages(batch).values())
    batch.answer().check(*merged(batch, placement))


def tokens_of_pages(batch: Batch) -> dict[int, int]:
    """How many tokens of each page are in use."""
    tokens: dict[int, int] = {}
    for table, n in zip(batch.tables, batch.kv_lens):
        for i, page in enumerate(table[: -(-n // batch.page_tokens)].tolist()):
            used = min(n - i * batch.page_tokens, batch.page_tokens)
            tokens[page] = max(tokens.get(page, 0), used)
    return tokens


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_each_page_is_on_one_rank_and_ranks_are_balanced(ranks):
    batch = Batch([16 * 100 + 40 + b for b in range(20)], [1] * 20, prefix=100)
    placement = placed(batch, ranks)
    held = [set(placement.pages(rank).tolist()) for rank in range(ranks)]
    assert sum(map(len, held)) == len(set.union(*held)) == len(tokens_of_pages(batch))
    assert placement.tokens.max() <= placement.tokens.mean() * 1.05 + batch.page_tokens


def test_short_segments_stay_whole():
    batch = Batch([16 * 256 + 40] * 20, [1] * 20, prefix=256, head_dim=8)
    placement = placed(batch, 4)
    for table in batch.tables:
        assert len(set(placement.owner[table[256:]].tolist())) == 1


def test_a_sequence_may_lie_on_one_rank_and_a_rank_may_be_empty():
    batch = Batch([16, 16], [1, 1])
    placement = placed(batch, 3)
    assert sorted(placement.tokens.tolist()) == [0, 16, 16]
    rank = int(np.argmin(placement.tokens))
    mine = seen(batch, placement, rank)
    assert mine.kv_len.tolist() == [0, 0] and mine.num_pages == 0


def test_equal_inputs_give_equal_placements():
    a, b = (placed(BATCHES["ragged"], 3) for _ in range(2))
    assert np.array_equal(a.owner, b.owner) and np.array_equal(a.local, b.local)


def test_a_block_table_is_placed_as_offsets_are():
    batch = Batch([33, 64], [1, 1], prefix=1)
    table = np.full((2, 6), 2**31 - 1, np.int32)  # what is past the end is not looked at
    for row, pages in zip(table, batch.tables):
        row[: len(pages)] = pages
    a = place(batch.kv_lens, None, table, 16, 2)
    assert np.array_equal(a.owner, placed(batch, 2).owner)
    mine = a.batch(1, batch.q_indptr, batch.kv_lens, None, table)
    for got, want in zip(mine, seen(batch, placed(batch, 2), 1)):
        assert np.array_equal(got, want)


def test_pages_stay_where_they_are_when_sequences_grow():
    long = Batch([16 * 8 + 16 * b for b in range(1, 9)], [1] * 8, prefix=8)
    short = [n - 20 for n in long.kv_lens]
    before = place(short, long.page_indptr, long.page_ids, 16, 3)
    after = placed(long, 3, previous=before)
    was = np.flatnonzero(before.owner >= 0)
    assert np.array_equal(after.owner[was], before.owner[was])
    assert np.array_equal(after.local[was], before.local[was])
    long.answer().check(*merged(long, after))
    for rank in range(3):
        pages = after.pages(rank)
        assert len(set(pages.tolist())) == len(pages)


def test_places_of_pages_that_are_gone_are_used_again():
    a, b = place([64], [0, 4], [0, 1, 2, 3], 16, 1), None
    b = place([48], [0, 3], [7, 1, 9], 16, 1, previous=a)
    assert b.local[1] == a.local[1]
    assert b.pages(0).tolist() == [7, 1, 9]
    c = place([16], [0, 1], [9], 16, 1, previous=b)
    assert c.pages(0).tolist() == [-1, -1, 9]


def test_a_page_in_two_segments_lies_on_one_rank():
    # The second sequence holds page 1 at another position, which makes it another segment.
    placement = place([32, 16], [0, 2, 3], [0, 1, 1], 16, 2)
    assert placement.tokens.sum() == 32
    held = [placement.batch(r, [0, 1, 2], [32, 16], [0, 2, 3], [0, 1, 1]) for r in (0, 1)]
    assert sum(mine.kv_len for mine in held).tolist() == [32, 16]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"ranks": 0}, "ranks: got 0, want 1 or more"),
        ({"slack": -1.0}, "slack: got -1.0"),
        ({"page_tokens": 24}, "page_tokens: got 24"),
        ({"kv_len": [16, -1]}, "kv_len"),
        ({"page_indptr": [0, 1, 1]}, r"kv_len\[1\]: got 16 tokens, want at most 0"),
        ({"page_ids": [-1, 1]}, "page_ids"),
    ],
)
def test_bad_arguments_of_place_are_refused(change, text):
    arguments = {
        "kv_len": [16, 16],
        "page_indptr": [0, 1, 2],
        "page_ids": [0, 1],
        "page_tokens": 16,
        "ranks": 2,
        **change,
    }
    with pytest.raises(ValueError, match=text):
        place(**arguments)


def test_bad_arguments_of_a_placement_are_refused():
    placement = place([16, 16], [0, 1, 2], [0, 1], 16, 2)
    tables = ([0, 1, 2], [16, 16], [0, 1, 2], [0, 1])
    for rank in (-1, 2):
        with pytest.raises(ValueError, match=f"rank: got {rank}, want 0 to 1"):
            placement.batch(rank, *tables)
        with pytest.raises(ValueError, match=f"rank: got {rank}, want 0 to 1"):
            placement.pages(rank)
    with pytest.raises(TypeError, match="rank: got float"):
        placement.pages(0.5)
    with pytest.raises(ValueError, match="page_ids: got page 5, which no rank holds"):
        placement.batch(0, *tables[:3], [0, 5])
    with pytest.raises(ValueError, match="q_indptr"):
        placement.batch(0, [0, 2, 1], *tables[1:])
    with pytest.raises(ValueError, match="visible: got 1 ranges"):
        placement.batch(0, *tables, visible=[[0, 1]])
    with pytest.raises(ValueError, match=r"visible: got shape \(1, 4\), want \(q_rows, 2\)"):
        placement.batch(0, *tables, visible=[[0, 1, 0, 1]])
    with pytest.raises(ValueError, match="page_indptr"):
        placement.batch(0, *tables[:2], [0, 1], [0, 1])
    with pytest.raises(ValueError, match="previous: got a placement of pages of 16 tokens on 2"):
        place([16], [0, 1], [0], 16, 3, previous=placement)


def test_ranges_are_those_of_the_mask_rule():
    batch = BATCHES["window"]
    mine = seen(batch, placed(batch, 1), 0)
    want = [
        r
        for q_len, kv_len in zip(batch.q_lens, batch.kv_lens)
        for r in oracle.causal(q_len, kv_len, 50)
    ]
    assert mine.visible.tolist() == [list(r) for r in want]
