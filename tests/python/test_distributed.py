"""Context parallelism of 2 and 4 processes over gloo: against one process and the oracle."""

import numpy as np
import pytest
from batch import Batch

import pando_attn
from pando_attn.distributed import place

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@pytest.fixture(params=[2, 4])
def ranks(request, rank_groups):
    return rank_groups(request.param)


@pytest.fixture
def two(rank_groups):
    return rank_groups(2)


def tensors(batch, pages):
    """q of the whole batch, and K and V of some of its pages."""
    k, v = batch.caches()
    return [
        torch.from_numpy(x.astype(np.float32)).to(DTYPES[batch.dtype])
        for x in (batch.q, k[pages], v[pages])
    ]


def tables(batch):
    return batch.q_indptr, batch.kv_lens, batch.page_indptr, batch.page_ids


def arguments(batch):
    return {
        "q_heads": batch.q_heads,
        "kv_heads": batch.kv_heads,
        "head_dim": batch.head_dim,
        "dtype": batch.dtype,
        "threads": 1,
        **batch.options,
    }


def attend(rank, batch, collective="all_gather", head_parts=1):
    """Out and LSE, as every rank gets them."""
    from pando_attn.distributed import ContextParallel

    cp = ContextParallel(collective=collective, head_parts=head_parts)
    mine = cp.plan(*tables(batch), batch.page_tokens, **arguments(batch))
    q, k, v = tensors(batch, mine.pages)
    out, lse = cp.attend(q, k, v, return_lse=True, layout=batch.layout)
    assert torch.equal(cp.attend(q, k, v, layout=batch.layout), out)
    return out.float().numpy(), lse.numpy(), int(mine.kv_len.sum())


BATCHES = {
    "ragged": Batch([133, 140, 129, 200, 1], [1, 2, 1, 1, 1], prefix=8),
    "unshared": Batch([37, 5, 64, 100], [1, 1, 3, 1]),
    "bf16": Batch([333, 340, 129, 0, 20], [1, 3, 1, 1, 0], prefix=8, dtype="bf16"),
    "fp16, HND": Batch([333, 340], [1, 3], prefix=8, dtype="fp16", layout="HND"),
    "no groups": Batch([133, 140], [1, 1], prefix=8, kv_heads=4),
    "one kv head": Batch([133, 140], [1, 1], prefix=8, q_heads=6, kv_heads=1),
    "window": Batch([133, 140, 300], [1, 5, 1], prefix=8, options={"window": 50, "scale": 0.3}),
    "soft cap": Batch([133, 140, 300], [1, 5, 1], prefix=8, options={"soft_cap": 1.5}),
    "empty ranks": Batch([16, 0], [1, 1]),
    "nothing to see": Batch([0, 0], [1, 2]),
    "no rows": Batch([32, 16], [0, 0], prefix=1),
}


@pytest.mark.parametrize("collective", ["all_gather", "all_to_all"])
@pytest.mark.parametrize("name", BATCHES)
def test_every_rank_gets_what_one_process_computes(ranks, name, collective):
    batch = BATCHES[name]
    results = ranks.run(attend, batch, collective)
    for out, lse, _ in results:
        assert np.array_equal(out, results[0][0]) and np.array_equal(lse, results[0][1])
        batch.answer().check(out, lse, dtype=batch.dtype, roundings=2)
    held = sum(tokens for *_, tokens in results)
    assert held == sum(batch.kv_lens)  # each token of each sequence on one rank
    alone = pando_attn.attend(
        batch.plan(threads=1), *tensors(batch, slice(None)), layout=batch.layout
    )
    largest = alone.float().abs().max() if alone.numel() else 0
    close = {"fp32": 1e-5, "bf16": 2**-7, "fp16": 2**-10}[batch.dtype] * float(largest)
    assert np.abs(results[0][0] - alone.float().numpy()).max(initial=0) <= close


@pytest.mark.parametrize("collective", ["all_gather", "all_to_all"])
@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_heads_in_parts_give_the_same(two, layout, collective):
    batch = Batch([133, 140, 50], [1, 2, 1], prefix=2, q_heads=8, kv_heads=4, layout=layout)
    for parts in (2, 4):
        for out, lse, _ in two.run(attend, batch, collective, parts):
            batch.answer().check(out, lse)


def decode(rank, lengths, batch, check):
    """Steps of a growing batch whose K and V are written where the placement says; the answers."""
    from pando_attn.distributed import ContextParallel

    cp = ContextParallel()
    q, k, v = tensors(batch, slice(None))
    mine_k = torch.full((batch.num_pages, *k.shape[1:]), float("nan"))
    mine_v = mine_k.clone()
    outs, before = [], None
    for step, kv_len in enumerate(lengths):
        steps = (batch.q_indptr, kv_len, batch.page_indptr, batch.page_ids)
        if step:
            mine = cp.update(*steps, check=check)
            assert (mine.pages[: len(before)] == before).all()  # nothing has moved
        else:
            mine = cp.plan(*steps, batch.page_tokens, **arguments(batch))
        new = range(len(before) if step else 0, mine.num_pages)
        for place_of_page in new:
            mine_k[place_of_page] = k[mine.pages[place_of_page]]
            mine_v[place_of_page] = v[mine.pages[place_of_page]]
        before = mine.pages
        outs.append(cp.attend(q, mine_k, mine_v).numpy())
    return outs


@pytest.mark.parametrize("check", [True, False])
def test_pages_stay_where_they_are_in_a_decode_loop(two, check):
    last = [16 * 8 + 40, 16 * 8 + 70, 200, 30]
    batch = Batch(last, [1, 1, 1, 1], prefix=1)
    lengths = [[n - back for n in last] for back in (29, 15, 14, 1, 0)]
    for outs in two.run(decode, lengths, batch, check):
        for kv_len, out in zip(lengths, outs):
            at = Batch(last, [1, 1, 1, 1], prefix=1)
            at.kv_lens = kv_len
            at.answer().check(out)


def out_in_place(rank, batch):
    from pando_attn.distributed import ContextParallel

    cp = ContextParallel()
    half = place(*tables(batch)[1:], batch.page_tokens, 2)
    mine = cp.plan(*tables(batch), batch.page_tokens, placement=half, **arguments(batch))
    assert cp.placement is half and cp.batch is mine and cp.rank_plan.q_rows == len(batch.q)
    q, k, v = tensors(batch, mine.pages)
    out, lse = torch.full_like(q, float("nan")), torch.empty(q.shape[:2])
    got = cp.attend(q, k, v, out=out, lse=lse)
    assert got[0] is out and got[1] is lse
    return out.numpy(), lse.numpy()


def test_results_go_where_they_are_wanted(two):
    batch = Batch([133, 140], [1, 2], prefix=8)
    for out, lse in two.run(out_in_place, batch):
        batch.answer().check(out, lse)
