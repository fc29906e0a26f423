"""KV of fp8 under pando_attn.generate: against the same model that rounds K and V itself."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.17")
pytestmark = pytest.mark.torch

from rounded_models import logits_of_kv, plain_logits, rounded_logits  # noqa: E402
from tiny_models import STYLES, greedy, prompt, tiny  # noqa: E402

import pando_attn  # noqa: E402
from pando_attn.transformers import KvCache, _fp8, _generate  # noqa: E402

CUDA = pytest.param("cuda", marks=pytest.mark.cuda)


def generated(model, ids, cache, monkeypatch):
    """Tokens of one sample, the logits that each was the best of, and K and V as they were kept:
    ``[layers, 2, tokens, kv_heads, head_dim]``."""
    logits_of_step, tables_of_step = [], []
    sample, layout = _generate.Sampler.__call__, KvCache.layout

    def spy_sample(self, logits):
        logits_of_step.append(logits[0].clone())
        return sample(self, logits)

    def spy_layout(self, *args):
        made = layout(self, *args)
        tables_of_step.append(made.tables)
        return made

    with monkeypatch.context() as patch:
        patch.setattr(_generate.Sampler, "__call__", spy_sample)
        patch.setattr(KvCache, "layout", spy_layout)
        got = pando_attn.generate(model, ids, max_new_tokens=20, cache=cache)
    pages = torch.tensor(np.asarray(tables_of_step[-1].page_ids), device=model.device)
    codes = cache._kv[:, :, pages.long()].flatten(2, 3)[:, :, : len(ids) + 19]
    scales = torch.stack(scales_of(cache), 1)[:, :, None, :, None]
    kept = codes.view(torch.float8_e4m3fn).float() * scales
    return got.tokens[0][0], torch.stack(logits_of_step), kept


def scales_of(cache):
    return cache.k_scale, cache.v_scale


def distance(got, want):
    """Root mean square of the differences over that of what is wanted."""
    return float((got - want).pow(2).mean().sqrt() / want.pow(2).mean().sqrt())


@pytest.mark.parametrize("given", [None, 1.0, 0.01])
@pytest.mark.parametrize("style", STYLES)
def test_logits_are_those_of_the_kv_that_is_kept(style, given, monkeypatch):
    model = tiny(style)
    cache = KvCache(model, 128, kv_dtype="fp8", k_scale=given, v_scale=given)
    ids = prompt(37)
    tokens, logits, kept = generated(model, ids, cache, monkeypatch)
    want = logits_of_kv(model, ids + tokens[:-1], kept)[len(ids) - 1 :]
    torch.testing.assert_close(logits, want, rtol=2e-4, atol=2e-4 * float(want.abs().max()))
    again = rounded_logits(model, ids + tokens, *scales_of(cache))[len(ids) - 1 : -1]
    plain = plain_logits(model, ids + tokens)[len(ids) - 1 : -1]
    # Where another order of sums rounds an element to its other neighbour, logits differ a little.
    assert distance(logits, again) < 0.05 * distance(logits, plain)
    assert distance(logits, plain) > 1e-3  # the rounding is there
    if given != 0.01:  # with which some of it saturates
        assert distance(logits, plain) < 0.25


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("style", ["qwen3", "gemma3"])
def test_half_precision_is_that_of_rounded_kv(style, dtype, device, monkeypatch):
    model = tiny(style, head_dim=64).to(device, dtype)
    cache = KvCache(model, 128, kv_dtype="fp8")
    ids = prompt(37)
    tokens, logits, _ = generated(model, ids, cache, monkeypatch)
    wide = tiny(style, head_dim=64)
    wide.load_state_dict(model.float().state_dict())
    want = rounded_logits(wide, ids + tokens, *(s.cpu() for s in scales_of(cache)))
    want = want[len(ids) - 1 : -1]
    # As far from it as sdpa of that dtype, whose K and V are rounded in the same way.
    half = rounded_logits(model.to(dtype), ids + tokens, *scales_of(cache))[len(ids) - 1 : -1]
    assert distance(logits.cpu(), want) < 2 * distance(half.cpu(), want)


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.filterwarnings("error:cuda_graph")  # that it was not captured
def test_samples_and_prompts_share_fp8_pages(device):
    model = tiny("llama", head_dim=64).to(device, torch.bfloat16)
    first = prompt(32)
    prompts = [first + prompt(3 * i, 1 + i) for i in range(4)]
    cache = KvCache(model, 1024, kv_dtype="fp8")
    got = pando_attn.generate(model, prompts, num_samples=2, max_new_tokens=24, cache=cache)
    assert got.computed_prompt_tokens == 32 + 3 + 6 + 9
    scales = dict(zip(("k_scale", "v_scale"), scales_of(cache)))
    for ids, samples in zip(prompts, got.tokens):
        one = pando_attn.generate(
            model, ids, max_new_tokens=24, kv_dtype="fp8", cuda_graph=False, **scales
        )
        # In bf16 a row's sums depend on its place in the batch, and so may a token that is a tie.
        assert device == "cuda" or samples == one.tokens[0] * 2
    fixed = [scale.clone() for scale in scales.values()]
    later = pando_attn.generate(model, prompts, max_new_tokens=24, cache=cache)
    assert later.computed_prompt_tokens < got.computed_prompt_tokens
    assert all(map(torch.equal, scales.values(), fixed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kv_takes_one_byte_an_element(dtype):
    model = tiny("llama").to(dtype)
    elements = 4 * 2 * 2 * 16  # layers, K and V, kv heads, head_dim
    options = {"num_samples": 16, "max_new_tokens": 17}
    got = pando_attn.generate(model, prompt(320), kv_dtype="fp8", **options)
    assert got.kv_bytes == (320 + 16 * 16) * elements
    other = pando_attn.generate(model, prompt(320), **options)
    assert other.kv_bytes == dtype.itemsize * got.kv_bytes
    cache = KvCache(model, 64, kv_dtype="fp8")
    assert cache._kv.dtype.itemsize == 1
    scales = 2 * 4 * 2 * 4  # K and V, layers, kv heads, fp32
    assert cache.nbytes == cache._kv.untyped_storage().nbytes() + scales


def test_scales_hang_only_a_little_on_what_fixes_them():
    model = tiny("llama")
    ids = prompt(40)
    want = pando_attn.generate(model, ids, max_new_tokens=20, kv_dtype="fp8").tokens
    for options in ({"prefill_tokens": 1}, {"prefill_tokens": 7}):
        got = pando_attn.generate(model, ids, max_new_tokens=20, kv_dtype="fp8", **options)
        assert got.tokens == want
    behind = pando_attn.generate(model, [prompt(100, 3), ids], max_new_tokens=20, kv_dtype="fp8")
    assert behind.tokens[1] == want[0]


def test_scales_are_powers_of_two_with_headroom():
    fp8 = _fp8.Fp8Kv(1, 3, torch.device("cpu"))
    key = torch.randn(1, 3, 50, 16) * torch.tensor([0.01, 1.0, 100.0])[:, None, None]
    value = key.clone()
    value[:, 0], value[:, 1, 3, 3] = 0, torch.nan
    assert not fp8.fixed
    fp8.quantize(0, key[:, :, :0], value[:, :, :0])
    assert not fp8.fixed  # by nothing
    spoilt = torch.cat((key, key * 1e4), 2), torch.cat((value, value), 2)
    fp8.quantize(0, *spoilt, tokens=50)  # the others are padding
    assert fp8.fixed
    room = 448 * fp8.k_scale[0] / key[0].abs().amax((1, 2))
    assert (room >= 16).all() and (room <= 32).all()
    assert (fp8.k_scale.log2() % 1 == 0).all()
    assert fp8.v_scale[0].tolist() == [1.0, 1.0, float(fp8.k_scale[0, 2])]
    before = fp8.k_scale.clone()
    fp8.quantize(0, key * 10, value)
    assert torch.equal(fp8.k_scale, before)
    fp8.forget()
    fp8.quantize(0, key * 16, value)
    assert torch.equal(fp8.k_scale, before * 16)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_is_too_large_saturates(dtype):
    fp8 = _fp8.Fp8Kv(1, 1, torch.device("cpu"), k_scale=2.0, v_scale=1.0)
    x = torch.tensor([1.0, 1000.0, -60000.0, torch.inf, -torch.inf, torch.nan]).to(dtype)
    k, v = fp8.quantize(0, x.view(1, 1, 1, -1), x.view(1, 1, 1, -1))
    assert k.flatten().tolist()[:5] == [0x30, 0x7E, 0xFE, 0x7E, 0xFE]
    assert v.flatten().tolist()[:5] == [0x38, 0x7E, 0xFE, 0x7E, 0xFE]
    assert k.flatten()[5] & 0x7F == 0x7F  # NaN, of either sign
    back, _ = fp8.dequantize(0, k, v, dtype)
    assert back.dtype == dtype
    assert back.flatten().tolist()[:5] == [1.0, 896.0, -896.0, 896.0, -896.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_rounds_as_quantize_fp8_does(dtype):
    x = torch.randn(1, 3, 40, 16).to(dtype)
    scale = torch.tensor([[0.01, 0.003, 1.7]])
    k, _ = _fp8.Fp8Kv(1, 3, torch.device("cpu"), scale, scale).quantize(0, x, x)
    want, _, _ = pando_attn.quantize_fp8(x, scale=scale[0], layout="HND")
    assert torch.equal(k, want.view(torch.uint8))


def test_given_scales_are_kept():
    model = tiny("llama", layers=2)
    k_scale = np.array([[0.5], [0.25]])
    cache = KvCache(model, 64, kv_dtype=torch.float8_e4m3fn, k_scale=k_scale, v_scale=2)
    pando_attn.generate(model, prompt(9), max_new_tokens=3, cache=cache, kv_dtype="fp8")
    assert cache.k_scale.tolist() == [[0.5, 0.5], [0.25, 0.25]]
    assert cache.v_scale.tolist() == [[2.0, 2.0]] * 2
    assert KvCache(model, 64, kv_dtype="fp8").k_scale is None
    assert KvCache(model, 64).k_scale is None


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"kv_dtype": "fp4"}, ValueError, "kv_dtype: got 'fp4', want one of"),
        ({"kv_dtype": "fp16"}, ValueError, "kv_dtype: got 'fp16', want fp8 or torch.float32"),
        ({"k_scale": 1.0}, ValueError, "k_scale: got one for KV of torch.float32, want none"),
        ({"kv_dtype": "fp8", "k_scale": 1.0}, ValueError, "v_scale: got one of k_scale and v"),
        ({"kv_dtype": "fp8", "k_scale": 1.0, "v_scale": 0}, ValueError, "v_scale: got 0.0, want a"),
        ({"kv_dtype": "fp8", "k_scale": "1", "v_scale": 1}, TypeError, "k_scale: got str, want a"),
        (
            {"kv_dtype": "fp8", "k_scale": torch.ones(2), "v_scale": 1},
            ValueError,
            r"k_scale: got shape \(2,\), want a number, or \(2, 2\) for",
        ),
    ],
)
def test_what_is_wrong_is_refused_by_name(options, error, message):
    with pytest.raises(error, match=message):
        pando_attn.generate(tiny("llama", layers=2), [1, 2], max_new_tokens=2, **options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"kv_dtype": "fp8"}, "kv_dtype: got 'fp8' with a cache of fp32, want that or none"),
        ({"v_scale": 1.0}, "v_scale: got one with a cache, which has its own"),
    ],
)
def test_what_a_cache_has_is_not_given_again(options, message):
    model = tiny("llama", layers=2)
    cache = KvCache(model, 64)
    with pytest.raises(ValueError, match=message):
        pando_attn.generate(model, [1, 2], max_new_tokens=2, cache=cache, **options)
    want = greedy(model, [1, 2], 2)
    got = pando_attn.generate(model, [1, 2], max_new_tokens=2, cache=cache, kv_dtype="fp32")
    assert got.tokens == [[want]]


@pytest.mark.cuda
def test_head_dims_without_fp8_on_cuda_are_refused_by_name():
    model = tiny("llama", layers=2, head_dim=256).to("cuda", torch.bfloat16)
    with pytest.raises(NotImplementedError, match="head_dim: got 256"):
        pando_attn.generate(model, prompt(9), max_new_tokens=2, kv_dtype="fp8")
