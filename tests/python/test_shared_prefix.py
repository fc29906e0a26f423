"""shared_prefix_attention against the oracle on whole contexts."""

import numpy as np
import oracle
import pytest

import pando_attn

SHAPES = {
    "one_level": {"levels": [(1, 64)], "own": 9, "sequences": 6},
    "no_own_tokens": {"levels": [(1, 48)], "own": None, "sequences": 3},
    "no_level": {"levels": [], "own": 33, "sequences": 3},
    "odd_lengths": {"levels": [(1, 37), (3, 5)], "own": 7, "sequences": 6},
    "four_levels": {"levels": [(1, 128), (2, 20), (2, 3), (6, 16)], "own": 1, "sequences": 6},
    "several_rows": {"levels": [(1, 40), (2, 16)], "own": 8, "sequences": 4, "q_len": 3},
    "no_level_is_empty": {"levels": [(1, 32), (2, 0)], "own": 8, "sequences": 4},
}


def problem(levels, own, sequences, q_len=None, dtype="fp32", heads=(4, 2), d=64, seed=0):
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.standard_normal(shape, np.float32).astype(oracle.NUMPY_DTYPES[dtype])

    q_heads, kv_heads = heads
    q = normal(sequences, *([] if q_len is None else [q_len]), q_heads, d)
    ks, vs = ([normal(g, t, kv_heads, d) for g, t in levels] for _ in range(2))
    k, v = (None if own is None else normal(sequences, own, kv_heads, d) for _ in range(2))
    return q, k, v, ks, vs


def answer(q, k, v, ks, vs, kv_lens=None, shared_lens=None, group_sizes=None, causal=True):
    sequences = len(q)
    answers = []
    for b in range(sequences):
        parts = []
        for i, (level_k, level_v) in enumerate(zip(ks, vs)):
            groups = len(level_k)
            sizes = group_sizes[i] if group_sizes else [sequences // groups] * groups
            g = np.searchsorted(np.cumsum(sizes), b, side="right")
            n = shared_lens[i][g] if shared_lens else level_k.shape[1]
            parts.append((level_k[g, :n], level_v[g, :n]))
        if k is not None:
            n = k.shape[1] if kv_lens is None else kv_lens[b]
            parts.append((k[b, :n], v[b, :n]))
        whole_k, whole_v = (np.concatenate(x) for x in zip(*parts))
        q_rows = q[b].reshape(-1, *q.shape[-2:])
        n = len(whole_k)
        visible = oracle.causal(len(q_rows), n) if causal else [(0, n)] * len(q_rows)
        answers.append(oracle.rows(q_rows, whole_k, whole_v, visible))
    return oracle.together(answers)


@pytest.mark.parametrize("name", SHAPES)
def test_levels_are_one_context(name):
    tensors = problem(**SHAPES[name])
    out, lse = pando_attn.shared_prefix_attention(*tensors, return_lse=True)
    assert out.shape == tensors[0].shape and lse.shape == tensors[0].shape[:-1]
    want = answer(*tensors)
    want.out, want.rounded = (x.reshape(out.shape) for x in (want.out, want.rounded))
    want.lse = want.lse.reshape(lse.shape)
    want.check(out, lse)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_levels_in_16_bits(dtype):
    tensors = problem([(1, 64), (2, 16)], 8, 4, dtype=dtype)
    out = pando_attn.shared_prefix_attention(*tensors)
    assert out.dtype == tensors[0].dtype
    # Each level's part is rounded once, and the result once more.
    answer(*tensors).check(out, dtype=dtype, roundings=2)


def test_lengths_and_groups_of_all_sizes():
    tensors = problem([(2, 33), (3, 16)], 8, 7)
    options = {
        "kv_lens": [8, 0, 3, 1, 2, 8, 5],
        "shared_lens": [[33, 7], [16, 0, 9]],
        "group_sizes": [[5, 2], [2, 3, 2]],
    }
    out, lse = pando_attn.shared_prefix_attention(*tensors, **options, return_lse=True)
    answer(*tensors, **options).check(out, lse)
    # The same plans serve other lengths.
    options["kv_lens"] = [1, 2, 3, 4, 5, 6, 7]
    out, lse = pando_attn.shared_prefix_attention(*tensors, **options, return_lse=True)
    answer(*tensors, **options).check(out, lse)


def test_rows_that_reach_back_into_the_shared_tokens():
    tensors = problem([(1, 8), (2, 4)], 5, 4, q_len=12)
    options = {"kv_lens": [5, 0, 2, 3], "shared_lens": [[8], [4, 1]]}
    out, lse = pando_attn.shared_prefix_attention(*tensors, **options, return_lse=True)
    answer(*tensors, **options).check(out, lse)


def test_not_causal_rows_see_all():
    tensors = problem([(1, 8)], 5, 2, q_len=4)
    out = pando_attn.shared_prefix_attention(*tensors, causal=False)
    answer(*tensors, causal=False).check(out)


def test_given_memory_is_filled():
    tensors = problem([(1, 40)], 8, 4, q_len=2)
    want, want_lse = pando_attn.shared_prefix_attention(*tensors, return_lse=True)
    out, lse = np.full_like(want, np.nan), np.full_like(want_lse, np.nan)
    pando_attn.shared_prefix_attention(*tensors, out=out, lse=lse)
    assert np.array_equal(out, want) and np.array_equal(lse, want_lse)


@pytest.mark.parametrize("levels", [[], [(1, 40)]])
def test_results_over_an_input_are_refused(levels):
    tensors = problem(levels, 8, 4)
    for name, memory in (("q", tensors[0]), ("v", tensors[2].reshape(-1)[: tensors[0].size])):
        with pytest.raises(ValueError, match=f"out: got memory that overlaps {name}"):
            pando_attn.shared_prefix_attention(*tensors, out=memory.reshape(tensors[0].shape))


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"shared_vs": []}, ValueError, "shared_vs: got 0 levels"),
        ({"shared_ks": None}, TypeError, "shared_ks: got NoneType"),
        ({"v": None}, ValueError, "v: got one of k and v"),
        ({"k": np.zeros((3, 8, 2, 64), np.float32)}, ValueError, "k: got 3 sequences, want 4"),
        ({"v": np.zeros((4, 8, 1, 64), np.float32)}, ValueError, "v: got shape"),
        ({"shared_ks": [np.zeros((3, 40, 2, 64), np.float32)]}, ValueError, r"3 groups for 4"),
        (
            {"shared_vs": [np.zeros((1, 40, 2, 64))]},
            TypeError,
            r"shared_vs\[0\]: got dtype float64",
        ),
        ({"kv_lens": [1, 2, 3, 9]}, ValueError, "kv_lens: got 9 tokens, want 0 to 8"),
        ({"kv_lens": [1, 2, 3, -1]}, ValueError, "kv_lens: got -1"),
        ({"shared_lens": [[1], [2]]}, ValueError, "shared_lens"),
        ({"group_sizes": [[3]]}, ValueError, r"group_sizes\[0\]: got \[3\]"),
        ({"q": np.zeros((4, 64), np.float32)}, ValueError, "q: got shape"),
        ({"q": np.zeros((4, 4, 64), np.int32)}, TypeError, "q: got dtype int32"),
        ({"q": np.zeros((4, 3, 64), np.float32)}, ValueError, "q_heads: got 3"),
        ({"q": "text"}, TypeError, "q: got str"),
        ({"threads": -1}, ValueError, "threads"),
    ],
)
def test_wrong_arguments_are_named(change, error, text):
    names = ("q", "k", "v", "shared_ks", "shared_vs")
    arguments = {**dict(zip(names, problem([(1, 40)], 8, 4))), **change}
    with pytest.raises(error, match=text):
        pando_attn.shared_prefix_attention(**arguments)


@pytest.mark.parametrize("groups", [[1], [0], [1, 1], [0, 0]])
@pytest.mark.parametrize("sequences", [0, 2])
def test_no_rows_have_empty_results(sequences, groups):
    def zeros(*shape):
        return np.zeros(shape, np.float32)

    if sequences and not groups[0]:
        pytest.skip("sequences without a group")
    q_shape = (sequences, 1 - bool(sequences), 2, 8)
    own, shared = zeros(sequences, 3, 1, 8), [zeros(count, 3, 1, 8) for count in groups]
    out, lse = pando_attn.shared_prefix_attention(
        zeros(*q_shape), own, own.copy(), shared, shared, return_lse=True
    )
    assert out.shape == q_shape and lse.shape == q_shape[:-1]


def test_groups_must_be_nested():
    tensors = problem([(2, 8), (2, 8)], 8, 4)
    with pytest.raises(ValueError, match="a group reaches over two groups of level 0"):
        pando_attn.shared_prefix_attention(*tensors, group_sizes=[[1, 3], [2, 2]])


def test_strided_own_tokens_are_refused_by_name():
    q, k, v, ks, vs = problem([(1, 8)], 16, 4)
    with pytest.raises(ValueError, match="k: got a stride of"):
        pando_attn.shared_prefix_attention(q, k[:, :8], v[:, :8], ks, vs)
