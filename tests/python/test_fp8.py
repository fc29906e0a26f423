"""K and V of fp8, on NumPy and JAX arrays against the oracle; quantising."""

import ml_dtypes
import numpy as np
import pytest
from batch import Batch

import pando_attn

FP8 = ml_dtypes.float8_e4m3fn


def quantized(batch: Batch, by_head: bool = True):
    """K and V in the layout of the batch, and their scales; the batch's own become what they stand
    for, so that its answer is that of the quantised ones."""
    scales = {}
    for name in ("k", "v"):
        codes, scale, _ = pando_attn.quantize_fp8(getattr(batch, name), by_head=by_head)
        stands_for = codes.astype(np.float64) * scale.astype(np.float64)[:, None]
        setattr(batch, name, stands_for)
        scales[name] = codes, scale
    (k, k_scale), (v, v_scale) = scales["k"], scales["v"]
    if batch.layout == "HND":
        k, v = (np.ascontiguousarray(x.transpose(0, 2, 1, 3)) for x in (k, v))
    return (k, v), {"k_scale": k_scale, "v_scale": v_scale}


CASES = {
    "decode": Batch([133, 140], [1, 2], prefix=8),
    "prefill": Batch([133, 140], [70, 100], prefix=4, layout="HND"),
    "variants": Batch(
        [133, 140],
        [1, 2],
        prefix=8,
        options={"soft_cap": 2.0, "window": 50},
        sinks=np.array([0.5, -np.inf, 3.0, -2.0], np.float32),
    ),
}


@pytest.mark.parametrize("by_head", [True, False])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", CASES)
def test_fp8_is_right(name, dtype, by_head):
    case = CASES[name]
    batch = Batch(
        case.kv_lens, case.q_lens, case.prefix, dtype=dtype, layout=case.layout,
        options=case.options, sinks=case.sinks,
    )  # fmt: skip
    caches, scales = quantized(batch, by_head)
    plan = batch.plan(kv_dtype="fp8")
    out, lse = pando_attn.attend(
        plan, batch.q, *caches, return_lse=True, layout=batch.layout, sinks=batch.sinks, **scales
    )
    assert out.dtype == batch.q.dtype
    batch.answer().check(out, lse, dtype)


def test_bytes_will_do_and_are_the_same():
    batch = Batch([133, 140], [1, 2], prefix=8, dtype="bf16")
    caches, scales = quantized(batch)
    plan = batch.plan(kv_dtype=FP8)
    out = pando_attn.attend(plan, batch.q, *caches, **scales)
    as_bytes = [x.view(np.uint8) for x in caches]
    as_bytes[0].flags.writeable = False
    again = pando_attn.attend(plan, batch.q, *as_bytes, **scales)
    assert (out.view(np.uint16) == again.view(np.uint16)).all()


def test_a_plan_says_that_kv_is_fp8_and_reads_half_the_bytes():
    batch = Batch([133, 140], [1, 2], dtype="bf16")
    plan, other = batch.plan(kv_dtype="fp8"), batch.plan()
    assert (plan.dtype, plan.kv_dtype, other.kv_dtype) == ("bf16", "fp8", "bf16")
    assert 2 * plan.kv_bytes == other.kv_bytes
    assert "fp8 KV" in repr(plan) and "fp8 KV" in plan.explain()
    assert "fp8" not in repr(other) + other.explain()
    assert '"kv_dtype":"fp8"' in plan.json()


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"k_scale": None}, ValueError, "k_scale: got 0 scales, want 1, or 2"),
        ({"v_scale": None}, ValueError, "v_scale: got 0 scales, want 1, or 2"),
        ({"k_scale": np.ones(3, np.float32)}, ValueError, "k_scale: got 3 scales, want 1, or 2"),
        ({"k_scale": np.ones((1, 2), np.float32)}, ValueError, r"k_scale: got shape \(1, 2\)"),
        ({"k_scale": np.ones(2)}, TypeError, "k_scale: got dtype float64, want fp32"),
        ({"v_scale": np.ones(4, np.float32)[::2]}, ValueError, "v_scale: got strided memory"),
        ({"v_scale": np.zeros(1, np.float32)}, ValueError, r"v_scale\[0\]: got 0, want a finite"),
        ({"v_scale": 1.0}, TypeError, "v_scale: got float, want an array"),
    ],
)
def test_wrong_scales_are_refused_by_name(change, error, text):
    batch = Batch([133], [5], dtype="bf16")
    caches, scales = quantized(batch)
    with pytest.raises(error, match=text):
        pando_attn.attend(batch.plan(kv_dtype="fp8"), batch.q, *caches, **{**scales, **change})


def test_other_dtypes_are_refused_by_name():
    batch = Batch([133], [5], dtype="bf16")
    caches, scales = quantized(batch)
    with pytest.raises(ValueError, match="kv_dtype: got fp16, want bf16, as dtype, or fp8"):
        batch.plan(kv_dtype="fp16")
    with pytest.raises(ValueError, match="kv_dtype: got 'fp4', want one of fp32, bf16, fp16, fp8"):
        batch.plan(kv_dtype="fp4")
    with pytest.raises(ValueError, match="dtype: got 'fp8'"):
        batch.plan(dtype="fp8")
    with pytest.raises(TypeError, match="k_cache: got dtype float8_e5m2, want fp8"):
        k = caches[0].view(ml_dtypes.float8_e5m2)
        pando_attn.attend(batch.plan(kv_dtype="fp8"), batch.q, k, caches[1], **scales)
    with pytest.raises(TypeError, match="k_cache: got dtype float8_e4m3fn, want bf16"):
        pando_attn.attend(batch.plan(), batch.q, *caches)
    bf16 = [x.astype(ml_dtypes.bfloat16) for x in caches]
    with pytest.raises(ValueError, match="k_scale: got 2 scales, want none for KV of bf16"):
        pando_attn.attend(batch.plan(), batch.q, *bf16, **scales)


@pytest.mark.parametrize("by_head", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
def test_quantising_rounds_as_ml_dtypes_does(dtype, by_head):
    rng = np.random.default_rng(3)
    x = (rng.standard_normal((5, 16, 3, 24)) * [[1.0], [9.0], [0.1]]).astype(dtype)
    codes, scale, error = pando_attn.quantize_fp8(x, by_head=by_head)
    wide = x.astype(np.float32)
    largest = np.abs(wide).max((0, 1, 3)) if by_head else np.abs(wide).max(keepdims=True).ravel()
    assert (scale == largest / np.float32(448)).all()
    want = (wide / scale[:, None]).astype(FP8)
    assert codes.dtype == FP8 and (codes.view(np.uint8) == want.view(np.uint8)).all()
    lost = codes.astype(np.float64) * scale.astype(np.float64)[:, None] - wide
    assert error.elements == x.size and error.saturated == error.not_finite == 0
    assert error.max_abs == pytest.approx(np.abs(lost).max())
    assert error.rms == pytest.approx(np.sqrt((lost**2).mean()))
    assert error.rms_element == pytest.approx(np.sqrt((wide.astype(np.float64) ** 2).mean()))


def test_quantising_with_given_scales_saturates():
    x = np.array([1, 500, -1e9, np.nan], np.float32).reshape(1, 1, 1, 4)
    scale = np.ones(1, np.float32)
    codes, same, error = pando_attn.quantize_fp8(x, scale=scale)
    assert same is scale and (error.saturated, error.not_finite) == (2, 1)
    assert codes.view(np.uint8).ravel().tolist() == [0x38, 0x7E, 0xFE, 0x7F]
    hnd = np.ones((2, 3, 16, 8), np.float32) * np.array([1, 2, 4])[:, None, None]
    _, scale, _ = pando_attn.quantize_fp8(hnd.astype(np.float32), layout="HND")
    assert (scale * 448 == [1, 2, 4]).all()


@pytest.mark.parametrize(
    ("x", "options", "error", "text"),
    [
        (np.ones((2, 3), np.float32), {}, ValueError, "x: got 2 dimensions, want 4"),
        (np.ones((1, 1, 1, 1)), {}, TypeError, "x: got dtype float64"),
        (np.ones((1, 1, 1, 2), np.float32), {"layout": "NDH"}, ValueError, "layout: got 'NDH'"),
        (np.ones((1, 1, 3, 2), np.float32), {"scale": np.ones(2, np.float32)}, ValueError,
         "^scale: got 2, want 1, or 3"),
        (np.ones((1, 1, 1, 2), np.float32), {"scale": -np.ones(1, np.float32)}, ValueError,
         r"^scale\[0\]: got -1"),
        (np.ones((1, 1, 0, 2), np.float32), {}, ValueError, r"^x: got shape \(1, 1, 0, 2\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_quantised_is_refused_by_name(x, options, error, text):
    with pytest.raises(error, match=text):
        pando_attn.quantize_fp8(x, **options)


@pytest.mark.parametrize("shape", [(0, 4, 1, 8), (4, 0, 1, 8)])
def test_nothing_is_quantised_to_nothing(shape):
    codes, scale, error = pando_attn.quantize_fp8(np.zeros(shape, np.float32))
    assert codes.shape == shape and scale.tolist() == [1] and error.elements == 0


def test_fp8_of_jax_in_and_outside_of_jit():
    jax = pytest.importorskip("jax")
    batch = Batch([133, 140], [1, 2], prefix=8, dtype="bf16")
    caches, scales = quantized(batch)
    plan = batch.plan(kv_dtype="fp8")
    want = pando_attn.attend(plan, batch.q, *caches, **scales)
    on_jax = [jax.numpy.asarray(x) for x in (batch.q, *caches)]
    jax_scales = {name: jax.numpy.asarray(x) for name, x in scales.items()}
    eager = pando_attn.attend(plan, *on_jax, **jax_scales)
    assert (np.asarray(eager).view(np.uint16) == want.view(np.uint16)).all()
    pytest.importorskip("jax_tvm_ffi")
    from pando_attn.jax import attend

    jitted = jax.jit(lambda *x, **options: attend(plan, *x, **options))
    assert (np.asarray(jitted(*on_jax, **jax_scales)) == np.asarray(eager)).all()
    sinks = jax.numpy.zeros(batch.q_heads, jax.numpy.float32)
    with_sinks = pando_attn.attend(plan, *on_jax, sinks=sinks, **jax_scales)
    assert (np.asarray(jitted(*on_jax, sinks=sinks, **jax_scales)) == with_sinks).all()
    with pytest.raises(TypeError, match="k_cache: got dtype bfloat16, want fp8"):
        attend(plan, on_jax[0], on_jax[0], on_jax[2], **jax_scales)
