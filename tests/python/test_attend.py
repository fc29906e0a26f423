"""attend and plan on NumPy arrays, against the oracle."""

import numpy as np
import pytest
from batch import Batch

import pando_attn

CASES = {
    "decode": Batch([133, 140, 129, 150], [1] * 4, prefix=8),
    "several_new_tokens": Batch([70, 64, 65], [3, 1, 5], prefix=4),
    "prefill_of_part": Batch([40, 48], [20, 48], prefix=1),
    "no_rows_and_no_tokens": Batch([0, 33, 0], [2, 0, 1]),
    "rows_that_see_nothing": Batch([1], [34], q_heads=4, kv_heads=4),
    "window": Batch([100, 90], [2, 1], prefix=3, options={"window": 17}),
    "not_causal": Batch([50, 50], [4, 4], prefix=2, options={"causal": False}),
    "scale": Batch([50, 60], [1, 1], prefix=3, options={"scale": -0.3}),
    "visible": Batch(
        [64, 64],
        [2, 1],
        prefix=4,
        options={"visible": np.array([[0, 64], [5, 9], [60, 60]], np.int32)},
    ),
    "batch_invariant": Batch([700, 640], [1, 1], prefix=40, options={"batch_invariant": True}),
    "one_page_size": Batch([33, 40], [1, 1], prefix=20, page_tokens=1),
    "large_pages": Batch([600, 700], [1, 1], prefix=2, page_tokens=256),
    "group_of_7": Batch([90, 95], [1, 2], prefix=5, q_heads=14, kv_heads=2, head_dim=72),
    "head_dim_256": Batch([90, 95], [1, 2], prefix=5, q_heads=4, kv_heads=1, head_dim=256),
}


@pytest.mark.parametrize("share", ["auto", "none", "all"])
@pytest.mark.parametrize("name", CASES)
def test_attend_is_right(name, share):
    batch = CASES[name]
    out, lse = pando_attn.attend(batch.plan(share=share), batch.q, *batch.caches(), return_lse=True)
    batch.answer().check(out, lse)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("layout", ["NHD", "HND"])
def test_attend_is_right_in_every_dtype_and_layout(dtype, layout):
    batch = Batch([133, 140, 129], [1, 2, 1], prefix=8, dtype=dtype, layout=layout)
    out = pando_attn.attend(batch.plan(share="all"), batch.q, *batch.caches(), layout=layout)
    assert out.dtype == batch.q.dtype and out.shape == batch.q.shape
    batch.answer().check(out, dtype=dtype)


def test_attend_into_given_memory_is_the_same():
    batch = Batch([133, 140], [1, 1], prefix=8)
    plan = batch.plan()
    want, want_lse = pando_attn.attend(plan, batch.q, batch.k, batch.v, return_lse=True)
    out, lse = np.full_like(want, np.nan), np.full_like(want_lse, np.nan)
    got = pando_attn.attend(plan, batch.q, batch.k, batch.v, out=out, lse=lse)
    assert got[0] is out and got[1] is lse
    assert np.array_equal(out, want) and np.array_equal(lse, want_lse)


def test_attend_on_strided_and_read_only_arrays_is_the_same():
    batch = Batch([133, 140], [2, 1], prefix=8)
    plan = batch.plan()
    want = pando_attn.attend(plan, batch.q, batch.k, batch.v)
    # q, k and v as parts of larger arrays, out in every other row.
    fused = np.zeros((3, 6, 64), np.float32)
    fused[:, :4] = batch.q
    both = np.stack([batch.k, batch.v], axis=1)
    both.flags.writeable = False
    out = np.full((6, 4, 64), np.nan, np.float32)
    pando_attn.attend(plan, fused[:, :4], both[:, 0], both[:, 1], out=out[::2])
    assert np.array_equal(out[::2], want) and np.isnan(out[1::2]).all()


def test_attend_takes_rows_by_sequence():
    batch = Batch([40, 50], [3, 3])
    plan = batch.plan()
    want = pando_attn.attend(plan, batch.q, batch.k, batch.v)
    got, lse = pando_attn.attend(
        plan, batch.q.reshape(2, 3, 4, 64), batch.k, batch.v, return_lse=True
    )
    assert got.shape == (2, 3, 4, 64) and lse.shape == (2, 3, 4)
    assert np.array_equal(got.reshape(want.shape), want)


def test_attend_ignores_what_nobody_sees():
    batch = Batch([133, 140], [1, 1], prefix=8)
    plan = batch.plan()
    want = pando_attn.attend(plan, batch.q, batch.k, batch.v)
    for b, kv_len in enumerate(batch.kv_lens):
        for x in (batch.k, batch.v):
            x[batch.tables[b][-1], kv_len % 16 :] = np.nan
    unused = np.setdiff1d(np.arange(batch.num_pages), batch.page_ids)
    batch.k[unused] = batch.v[unused] = np.inf
    assert np.array_equal(pando_attn.attend(plan, batch.q, batch.k, batch.v), want)


def test_attend_with_one_thread_is_the_same_as_batch_invariant():
    options = {"batch_invariant": True}
    batch = Batch([700, 640], [1, 1], prefix=40, options=options)
    got = [
        pando_attn.attend(batch.plan(threads=threads), batch.q, batch.k, batch.v)
        for threads in (1, 2)
    ]
    assert np.array_equal(*got)
