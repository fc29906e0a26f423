"""Wrong calls: an error that names the argument, and never an end of the interpreter."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pando_attn

REFUSALS = (ValueError, TypeError, NotImplementedError, OverflowError)
PLAN = {
    "q_indptr": [0, 1, 3],
    "kv_len": [20, 32],
    "page_indptr": [0, 2, 4],
    "page_ids": [0, 1, 0, 2],
    "page_tokens": 16,
    "q_heads": 4,
    "kv_heads": 2,
    "head_dim": 16,
    "dtype": "fp32",
}


def call(**change):
    arguments = {**PLAN, **change}
    return pando_attn.plan(**arguments)


def attend_arguments():
    return {
        "plan": call(),
        "q": np.zeros((3, 4, 16), np.float32),
        "k_cache": np.zeros((3, 16, 2, 16), np.float32),
        "v_cache": np.zeros((3, 16, 2, 16), np.float32),
    }


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"q_indptr": [0, 2, 1]}, ValueError, "q_indptr"),
        ({"q_indptr": [1, 2, 3]}, ValueError, r"q_indptr\[0\]: got 1, want 0"),
        ({"q_indptr": [0, 1]}, ValueError, "q_indptr"),
        ({"q_indptr": [0, 1.5, 3]}, TypeError, "q_indptr: got dtype float64"),
        ({"q_indptr": [[0, 1, 3]]}, ValueError, "q_indptr: got 2 dimensions"),
        ({"q_indptr": "zero"}, TypeError, "q_indptr: got str"),
        ({"kv_len": [20, -1]}, ValueError, r"kv_len\[1\]: got -1"),
        ({"kv_len": [20, 33]}, ValueError, r"kv_len\[1\]: got 33 tokens, want at most 32"),
        ({"kv_len": [20, 2**40]}, ValueError, "kv_len: got 1099511627776"),
        ({"page_indptr": [0, 2, 5]}, ValueError, "page_ids: got 4 ids"),
        ({"page_ids": [0, -1, 0, 2]}, ValueError, r"page_ids\[1\]: got -1"),
        ({"page_ids": None}, TypeError, "page_ids: got NoneType"),
        ({"page_tokens": 24}, ValueError, "page_tokens: got 24"),
        ({"page_tokens": 16.0}, TypeError, "page_tokens: got float"),
        ({"page_tokens": True}, TypeError, "page_tokens: got a bool"),
        ({"page_tokens": 2**70}, ValueError, "page_tokens: got 1180591620717411303424"),
        ({"q_heads": 5}, ValueError, "q_heads: got 5, want a positive multiple of kv_heads, 2"),
        ({"kv_heads": 0}, ValueError, "kv_heads: got 0"),
        ({"head_dim": 100}, NotImplementedError, "head_dim: got 100"),
        ({"head_dim": 512}, NotImplementedError, "head_dim: got 512"),
        ({"dtype": "fp64"}, ValueError, "dtype: got 'fp64'"),
        ({"dtype": np.int8}, ValueError, "dtype: got"),
        ({"scale": float("nan")}, ValueError, "scale: got nan"),
        ({"scale": 1e-50}, ValueError, "scale: got 1e-50, want 0 or a number that fp32"),
        ({"scale": -1e-40}, ValueError, "scale: got -1e-40, want 0 or a finite number"),
        ({"scale": "0.5"}, TypeError, "scale: got str"),
        ({"causal": 2}, TypeError, "causal: got int"),
        ({"window": -1}, ValueError, "window: got -1"),
        ({"window": 3, "visible": [[0, 1]] * 3}, ValueError, "window: got 3 beside visible"),
        ({"visible": [[0, 1]]}, ValueError, "visible: got 1 ranges"),
        ({"visible": [[0, 1, 2]] * 3}, ValueError, "visible: got shape"),
        ({"share": "some"}, ValueError, "share: got 'some', want one of auto, none, all"),
        ({"share": []}, ValueError, "share"),
        ({"batch_invariant": True, "cut_tokens": 10}, ValueError, "cut_tokens: got 10"),
        ({"device": "tpu"}, ValueError, "device: got 'tpu'"),
        ({"device": "cuda:x"}, ValueError, "device: got 'cuda:x'"),
        (
            {"device": "h100", "head_dim": 128},
            NotImplementedError,
            "head_dim, dtype: got 128 x fp32",
        ),
        ({"device": "h100", "threads": 2}, ValueError, "threads: got 2"),
        ({"threads": -1}, ValueError, "threads: got -1"),
        ({"threads": 10**6}, ValueError, "threads: got 1000000"),
    ],
)
def test_plan_names_the_argument(change, error, text):
    with pytest.raises(error, match=text):
        call(**change)


def test_plan_for_cuda_says_why_there_is_none():
    why_not = pando_attn.cuda_unavailable(0)
    if not why_not:
        pytest.skip("there is a GPU")
    assert "there is no" in why_not or "CUDA" in why_not  # of a machine, or of a build
    with pytest.raises(NotImplementedError, match=re.escape(f"device: got cuda:0: {why_not}")):
        call(device="cuda", head_dim=64, dtype="bf16")


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"plan": None}, TypeError, "plan: got NoneType"),
        ({"q": None}, TypeError, "q: got NoneType, want an array"),
        ({"q": [[[0.0]]]}, TypeError, "q: got list"),
        ({"q": np.zeros((3, 4, 16))}, TypeError, "q: got dtype float64, want fp32"),
        ({"q": np.zeros((3, 4, 16), ">f4")}, TypeError, "q: got dtype >f4"),
        (
            {"q": np.zeros((2, 4, 16), np.float32)},
            ValueError,
            r"q: got shape \(2, 4, 16\), want \(3",
        ),
        ({"q": np.zeros((3, 64), np.float32)}, ValueError, r"q: got shape \(3, 64\)"),
        ({"q": np.zeros((3, 4, 32), np.float32)[..., ::2]}, ValueError, "q: got a stride of 2 in"),
        ({"q": np.zeros((3, 4, 16), np.float32)[:, ::-1]}, ValueError, "q.head_stride: got -16"),
        (
            {"q": np.broadcast_to(np.zeros(16, np.float32), (3, 4, 16))},
            ValueError,
            "q: got a stride of 0",
        ),
        ({"q": np.ma.zeros((3, 4, 16), np.float32)}, TypeError, "q: got a masked array"),
        ({"k_cache": np.zeros((3, 8, 2, 16), np.float32)}, ValueError, "k_cache: got shape"),
        ({"k_cache": np.zeros((2, 16, 2, 16), np.float32)}, ValueError, "v_cache: got shape"),
        (
            {"v_cache": np.zeros((3, 16, 2, 16), np.float16)},
            TypeError,
            "v_cache: got dtype float16",
        ),
        (
            {"v_cache": np.zeros((3, 16, 2, 32), np.float32)[..., :16]},
            NotImplementedError,
            "v_cache: got a stride of 1024",
        ),
        ({"layout": "HND"}, ValueError, r"k_cache: got shape .*layout HND"),
        ({"layout": "nhd"}, ValueError, "layout: got 'nhd', want one of NHD, HND"),
        ({"layout": None}, ValueError, "layout: got None"),
        ({"out": np.zeros((3, 4, 8), np.float32)}, ValueError, "out: got shape"),
        ({"out": np.zeros((3, 4, 16), np.float16)}, TypeError, "out: got dtype float16"),
        ({"out": "out"}, TypeError, "out: got str"),
        ({"lse": np.zeros((3, 4))}, TypeError, "lse: got dtype float64, want fp32$"),
        (
            {"lse": np.zeros((4, 3), np.float32)},
            ValueError,
            r"lse: got shape \(4, 3\), want \(3, 4\)",
        ),
        ({"lse": np.zeros((4, 3), np.float32).T}, ValueError, "lse: got strided memory"),
    ],
)
def test_attend_names_the_argument(change, error, text):
    arguments = {**attend_arguments(), **change}
    with pytest.raises(error, match=text):
        pando_attn.attend(**arguments)


def test_attend_refuses_to_write_where_it_must_not():
    arguments = attend_arguments()
    with pytest.raises(ValueError, match="out: got memory that overlaps q"):
        pando_attn.attend(**arguments, out=arguments["q"])
    out = np.zeros((3, 4, 16), np.float32)
    out.flags.writeable = False
    with pytest.raises(ValueError, match="out: got a read-only array"):
        pando_attn.attend(**arguments, out=out)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda b: {"q": b[:3], "out": b[1:4]}, "out: got memory that overlaps q"),
        (lambda b: {"q": b[1:4], "out": b[:3]}, "out: got memory that overlaps q"),
        (lambda b: {"q": b[::2], "out": b[2:5]}, "out: got memory that overlaps q"),
        (
            lambda b: {"out": b[:3], "lse": b.reshape(-1)[100:112].reshape(3, 4)},
            "lse: got memory that overlaps out",
        ),
        (
            lambda b: {"sinks": b.reshape(-1)[:4], "lse": b.reshape(-1)[:12].reshape(3, 4)},
            "lse: got memory that overlaps sinks",
        ),
    ],
)
def test_attend_refuses_outputs_that_overlap(change, text):
    buffer = np.zeros((5, 4, 16), np.float32)
    with pytest.raises(ValueError, match=text):
        pando_attn.attend(**{**attend_arguments(), **change(buffer)})


def test_attend_writes_between_the_rows_that_it_reads():
    arguments = attend_arguments()
    want = pando_attn.attend(**arguments)
    by_row, by_head = np.zeros((3, 8, 16), np.float32), np.zeros((3, 4, 2, 16), np.float32)
    slices = ((by_row[:, :4], by_row[:, 4:]), (by_head[:, :, 1], by_head[:, :, 0]))
    for q, out in slices:
        q[:] = arguments["q"]
        assert np.array_equal(pando_attn.attend(**{**arguments, "q": q}, out=out), want)
        assert np.array_equal(q, arguments["q"])


def test_attend_refuses_too_few_pages():
    arguments = attend_arguments()
    for name in ("k_cache", "v_cache"):
        arguments[name] = arguments[name][:2]
    with pytest.raises(ValueError, match=r"kv\.num_pages: got 2, want more than 2"):
        pando_attn.attend(**arguments)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: pando_attn.KvPool(0, 16), ValueError, "num_pages"),
        (lambda: pando_attn.KvPool(4, 3), ValueError, "page_tokens"),
        (lambda: pando_attn.KvPool(4, 4).retain(1), ValueError, "page"),
        (lambda: pando_attn.PrefixTree(4), TypeError, "pool: got int"),
        (lambda: tree().add([[1]]), ValueError, "tokens"),
        (lambda: tree().add("abc"), TypeError, "tokens: got str"),
        (lambda: tree().append(3, 1), ValueError, "sequence"),
        (lambda: tree().append(0, "a"), TypeError, "token: got str"),
        (lambda: tree().fork(-1), ValueError, "sequence"),
        (lambda: tree().release(2**80), ValueError, "sequence: got"),
        (lambda: tree().tables([5]), ValueError, "sequence"),
        (lambda: tree().evict(-1), ValueError, "pages"),
    ],
)
def test_prefix_tree_names_the_argument(call, error, text):
    with pytest.raises(error, match=text):
        call()


def tree():
    return pando_attn.PrefixTree(pando_attn.KvPool(4, 4))


scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.integers(-2, 300),
    st.floats(),
    st.text(max_size=3),
    st.just(b"x"),
    st.just({}),
    st.just(object()),
    st.just(np.float32(1)),
    st.just(np.int64(3)),
)
int_lists = st.lists(st.integers(-3, 40), max_size=6)
odd_arrays = st.builds(
    lambda shape, dtype, step: np.zeros(shape, dtype)[::step],
    st.lists(st.integers(0, 5), min_size=1, max_size=5),
    st.sampled_from(["f4", "f8", "f2", "i4", "u2", "?", "c8", "O", "S3", ">f4", "M8[s]", "V4"]),
    st.sampled_from([1, 2, -1]),
)
anything = st.one_of(scalars, int_lists, odd_arrays, st.lists(scalars, max_size=3))


def one_change(arguments):
    """One or two arguments replaced by anything."""
    return st.dictionaries(st.sampled_from(sorted(arguments)), anything, min_size=1, max_size=2)


@settings(max_examples=300, deadline=None)
@given(one_change([*PLAN, "scale", "causal", "window", "visible", "share", "device", "threads"]))
def test_plan_survives_anything(change):
    if isinstance(change.get("threads"), int) and change["threads"] > 64:
        change.pop("threads")
    try:
        call(**change).explain()
    except REFUSALS as error:
        assert str(error)


ATTEND = attend_arguments()


@settings(max_examples=300, deadline=None)
@given(one_change([*ATTEND, "out", "lse", "layout", "return_lse", "stream"]))
def test_attend_survives_anything(change):
    try:
        pando_attn.attend(**{**ATTEND, **change})
    except REFUSALS as error:
        assert str(error)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(-2, 12), min_size=3, max_size=3),
    st.lists(st.integers(-1, 70), min_size=2, max_size=2),
    st.lists(st.integers(-1, 9), min_size=3, max_size=3),
    st.lists(st.integers(-1, 9), max_size=9),
    st.sampled_from([0, 1, 8, 16, 17, 512]),
)
def test_tables_of_any_numbers_are_right_or_refused(
    q_indptr, kv_len, page_indptr, page_ids, tokens
):
    try:
        plan = pando_attn.plan(
            q_indptr, kv_len, page_indptr, page_ids, tokens, q_heads=2, kv_heads=1, head_dim=8,
            dtype="fp32",
        )  # fmt: skip
    except ValueError as error:
        assert str(error)
        return
    k = np.zeros((10, tokens, 1, 8), np.float32)
    out = pando_attn.attend(plan, np.ones((plan.q_rows, 2, 8), np.float32), k, k)
    assert out.shape == (plan.q_rows, 2, 8) and not out.any()


shapes = st.lists(st.integers(0, 9), min_size=3, max_size=4)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["q", "k", "v", "shared_ks", "shared_vs", "kv_lens", "shared_lens"]),
        st.one_of(anything, shapes.map(lambda s: np.zeros(s, np.float32))),
        min_size=1,
        max_size=2,
    )
)
def test_shared_prefix_attention_survives_anything(change):
    arguments = {
        "q": np.zeros((4, 2, 8), np.float32),
        "k": np.zeros((4, 4, 1, 8), np.float32),
        "v": np.zeros((4, 4, 1, 8), np.float32),
        "shared_ks": [np.zeros((2, 8, 1, 8), np.float32)],
        "shared_vs": [np.zeros((2, 8, 1, 8), np.float32)],
    }
    try:
        pando_attn.shared_prefix_attention(**{**arguments, **change})
    except REFUSALS as error:
        assert str(error)
