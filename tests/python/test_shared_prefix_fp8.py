"""shared_prefix_attention on levels whose K and V are fp8."""

import ml_dtypes
import numpy as np
import pytest
from test_shared_prefix import SHAPES, answer, problem

import pando_attn


def quantized(x, by_head=True):
    """fp8, its scales, and what they stand for."""
    if not x.size:
        return x.astype(ml_dtypes.float8_e4m3fn), np.ones(1, np.float32), x
    codes, scale, _ = pando_attn.quantize_fp8(x, by_head=by_head)
    return codes, scale, codes.astype(np.float64) * scale.astype(np.float64)[:, None]


def fp8_problem(shape, dtype, levels=None, own=True, by_head=True):
    """Arguments, options, and the tensors that they stand for; of the levels and own tokens that
    are named."""
    q, k, v, ks, vs = problem(**shape, dtype=dtype)
    fp8 = range(len(ks)) if levels is None else levels
    stands_for = [k, v, [*ks], [*vs]]
    options = {"shared_k_scales": [None] * len(ks), "shared_v_scales": [None] * len(ks)}
    for i in fp8:
        ks[i], options["shared_k_scales"][i], stands_for[2][i] = quantized(ks[i], by_head)
        vs[i], options["shared_v_scales"][i], stands_for[3][i] = quantized(vs[i], by_head)
    if own and k is not None:
        k, options["k_scale"], stands_for[0] = quantized(k, by_head)
        v, options["v_scale"], stands_for[1] = quantized(v, by_head)
    return (q, k, v, ks, vs), options, (q, *stands_for)


@pytest.mark.parametrize("by_head", [True, False])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", SHAPES)
def test_fp8_levels_are_one_context(name, dtype, by_head):
    given, options, tensors = fp8_problem(SHAPES[name], dtype, by_head=by_head)
    out, lse = pando_attn.shared_prefix_attention(*given, **options, return_lse=True)
    assert out.dtype == given[0].dtype
    answer(*tensors).check(out, lse, dtype=dtype, roundings=2)


@pytest.mark.parametrize(("levels", "own"), [([0], False), ([1], False), ([], True)])
def test_some_levels_may_be_fp8(levels, own):
    shape = SHAPES["odd_lengths"]
    given, options, tensors = fp8_problem(shape, "bf16", levels, own)
    out = pando_attn.shared_prefix_attention(*given, **options)
    answer(*tensors).check(out, dtype="bf16", roundings=2)
    # The same shapes without fp8 are other plans.
    plain = problem(**shape, dtype="bf16")
    answer(*plain).check(pando_attn.shared_prefix_attention(*plain), dtype="bf16", roundings=2)


def test_bytes_will_do():
    (q, k, v, ks, vs), options, _ = fp8_problem(SHAPES["one_level"], "bf16")
    want = pando_attn.shared_prefix_attention(q, k, v, ks, vs, **options)
    k, v, ks, vs = (
        x.view(np.uint8) if isinstance(x, np.ndarray) else [y.view(np.uint8) for y in x]
        for x in (k, v, ks, vs)
    )
    got = pando_attn.shared_prefix_attention(q, k, v, ks, vs, **options)
    assert (got.view(np.uint16) == want.view(np.uint16)).all()


ONE = np.ones(1, np.float32)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"k_scale": None, "v_scale": None}, ValueError, "k_scale: got none for k, want fp32"),
        ({"v_scale": None}, ValueError, "v_scale: got none for v, want fp32"),
        ({"shared_k_scales": None}, ValueError, r"shared_k_scales\[0\]: got none for shared_ks\[0"),
        ({"shared_v_scales": [ONE] * 2}, ValueError, "shared_v_scales: got .* want an entry for e"),
        (
            {"shared_v_scales": [np.ones(3, np.float32)]},
            ValueError,
            r"\[0\]: got shape \(3,\), wan",
        ),
        ({"k_scale": np.ones(2)}, TypeError, "k_scale: got dtype float64, want fp32"),
        ({"k_scale": 2.0}, TypeError, "k_scale: got float"),
        ({"v_scale": -ONE}, ValueError, r"v_scale\[0\]: got -1"),
        ({"k": None, "v": None}, ValueError, "k_scale: got scales, want None when k is None"),
    ],
)
def test_wrong_scales_are_named(change, error, text):
    given, options, _ = fp8_problem(SHAPES["one_level"], "bf16")
    arguments = dict(zip(("q", "k", "v", "shared_ks", "shared_vs"), given))
    with pytest.raises(error, match=text):
        pando_attn.shared_prefix_attention(**{**arguments, **options, **change})


def test_scales_of_other_dtypes_are_named():
    q, k, v, ks, vs = problem(**SHAPES["one_level"], dtype="bf16")
    with pytest.raises(TypeError, match="k: got dtype bfloat16, want fp8"):
        pando_attn.shared_prefix_attention(q, k, v, ks, vs, k_scale=ONE, v_scale=ONE)


def on_torch(torch, x, device):
    if isinstance(x, list):
        return [on_torch(torch, y, device) for y in x]
    if x is None:
        return None
    if x.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(x.view(np.uint16)).to(device).view(torch.bfloat16)
    if x.dtype == ml_dtypes.float8_e4m3fn:
        return torch.from_numpy(x.view(np.uint8)).to(device).view(torch.float8_e4m3fn)
    return torch.from_numpy(x).to(device)


@pytest.mark.torch
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize(("levels", "own"), [([0, 1], True), ([0], False)])
def test_tensors_of_torch(levels, own, device):
    torch = pytest.importorskip("torch")
    shape = {"levels": [(1, 64), (2, 16)], "own": 8, "sequences": 4, "q_len": 2}
    given, options, tensors = fp8_problem(shape, "bf16", levels, own)
    given = [on_torch(torch, x, device) for x in given]
    options = {name: on_torch(torch, x, device) for name, x in options.items()}
    out = pando_attn.shared_prefix_attention(*given, **options)
    assert out.dtype == torch.bfloat16 and out.device.type == device
    answer(*tensors).check(out.float().cpu(), dtype="bf16", roundings=2)
