"""Continuous batching whose pages are fp8."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.17")
pytestmark = pytest.mark.torch

from rounded_models import NAME, round_kv  # noqa: E402
from test_transformers_continuous import PADDING, engine, graphs  # noqa: E402, F401
from tiny_models import STYLES, prompt, regret, tiny  # noqa: E402

from pando_attn.transformers import ContinuousBatchingConfig, _engine, _engine_fp8  # noqa: E402

PROMPTS = [prompt(26), prompt(40, 1), [*prompt(26), 7, 8, 9], prompt(1, 2), prompt(60, 3)]


@pytest.fixture
def caches(monkeypatch):
    """The caches that engines make from now on."""
    made = []
    init = _engine_fp8.Fp8Kv.__init__

    def spy(self, *args, **options):
        init(self, *args, **options)
        made.append(self)

    monkeypatch.setattr(_engine_fp8.Fp8Kv, "__init__", spy)
    return made


def regrets(model, outputs, fp8, prompts=PROMPTS):
    """Of greedy tokens under the same model with K and V that are rounded with the same scales."""
    round_kv(fp8.k_scale, fp8.v_scale)
    return [regret(model, ids, out, NAME) for ids, out in zip(prompts, outputs)]


def fp8_engine(model, prompts, tokens=30, **options):
    model.set_attn_implementation("pando")
    return engine(model, prompts, tokens, config=ContinuousBatchingConfig, **options)


@pytest.mark.parametrize("given", [{}, {"k_scale": 0.03, "v_scale": 0.07}])
@pytest.mark.parametrize("style", STYLES)
def test_tokens_are_those_of_rounded_kv(style, given, caches):
    model = tiny(style)
    got = fp8_engine(model, PROMPTS, kv_dtype="fp8", **given)
    (fp8,) = caches
    assert fp8.fixed and (not given or float(fp8.v_scale.max()) == pytest.approx(0.07))
    assert max(regrets(model, got, fp8)) < 1e-2
    assert all(len(out) == 30 for out in got)


@pytest.mark.parametrize("style", ["llama", "gemma3"])
def test_pages_take_one_byte_an_element(style, monkeypatch):
    found = []
    pages = _engine_fp8.layer_pages

    def spy(cache, layer):
        found.append(pages(cache, layer))
        return found[-1]

    monkeypatch.setattr(_engine_fp8, "layer_pages", spy)
    model = tiny(style, head_dim=32)
    fp8_engine(model, [prompt(30)], 4, kv_dtype="fp8")
    (layer,) = found
    for x in (layer.k, layer.v):
        assert x.dtype == torch.uint8 and x.shape[1:] == (layer.page_tokens, 2, 32)


def test_without_kv_dtype_it_is_the_engine_as_it_was(caches):
    model = tiny("llama")
    model.set_attn_implementation("pando")
    assert fp8_engine(model, PROMPTS) == engine(model, PROMPTS)
    assert caches == []


def test_activations_are_counted_as_those_of_the_model(monkeypatch):
    handler = _engine_fp8.cache_module.PagedAttentionMemoryHandler
    seen = []
    infer = next(name for name in vars(handler) if name.startswith("infer"))
    original = getattr(handler, infer)

    def spy(self, *args, **options):
        seen.append((self.activation_dtype, self.cache_dtype))
        return original(self, *args, **options)

    monkeypatch.setattr(handler, infer, spy)
    fp8_engine(tiny("llama").to(torch.bfloat16), [prompt(9)], 2, kv_dtype="fp8")
    assert seen == [(torch.bfloat16, torch.uint8)]


@pytest.mark.parametrize("style", ["llama", "qwen3"])
def test_graphs_have_the_scales_of_the_first_batch(style, graphs, caches, monkeypatch):  # noqa: F811
    events = []
    forget, quantize = _engine_fp8.Fp8Kv.forget, _engine_fp8.Fp8Kv.quantize

    def spy_forget(self):
        events.append("warm" if self.fixed else "cold")
        forget(self)

    def spy_quantize(self, *args):
        assert self.fixed or not graphs.running, "a replay fixes no scales"
        was = self.fixed
        codes = quantize(self, *args)
        if self.fixed and not was:
            events.append("fixed")
        return codes

    monkeypatch.setattr(_engine_fp8.Fp8Kv, "forget", spy_forget)
    monkeypatch.setattr(_engine_fp8.Fp8Kv, "quantize", spy_quantize)
    model = tiny(style)
    got = fp8_engine(model, PROMPTS, kv_dtype="fp8", **PADDING)
    assert graphs.count > 20
    assert events == ["fixed", "warm", "fixed"]  # what a warm-up has seen fixes nothing for long
    assert max(regrets(model, got, *caches)) < 1e-2


def test_a_graph_that_would_fix_scales_gets_another(graphs, monkeypatch):  # noqa: F811
    compute, quantize = _engine._Engines.compute_in_graph, _engine_fp8.Fp8Kv.quantize
    forgotten, fixed = [], []

    def forget_once(self, runner, *args):
        if graphs.count == 10 and not forgotten:
            forgotten.append(runner.inputs_and_outputs.get_graph())
            runner.cache.pando_fp8.forget()
        compute(self, runner, *args)

    def spy(self, *args):
        fixed.append((self.fixed, graphs.running))
        return quantize(self, *args)

    monkeypatch.setattr(_engine._Engines, "compute_in_graph", forget_once)
    monkeypatch.setattr(_engine_fp8.Fp8Kv, "quantize", spy)
    fp8_engine(tiny("llama"), [prompt(20)], kv_dtype="fp8", **PADDING)
    assert forgotten and forgotten[0] is not None
    assert (False, False) in fixed and (False, True) not in fixed


def test_what_is_wrong_is_refused_by_name():
    model = tiny("llama", layers=2)
    with pytest.raises((AssertionError, ValueError), match="kv_dtype: got 'fp4', want one of"):
        fp8_engine(model, [prompt(9)], 2, kv_dtype="fp4")
    with pytest.raises((AssertionError, ValueError), match="k_scale: got one for KV"):
        fp8_engine(model, [prompt(9)], 2, k_scale=1.0)
    model.set_attn_implementation("sdpa")
    with pytest.raises((AssertionError, NotImplementedError), match="sdpa, want pando"):
        engine(model, [prompt(9)], 2, config=ContinuousBatchingConfig, kv_dtype="fp8")


@pytest.mark.cuda
@pytest.mark.parametrize("use_cuda_graph", [False, True])
@pytest.mark.parametrize("style", ["qwen3", "gemma3"])
def test_fp8_pages_on_cuda(style, use_cuda_graph, caches):
    if use_cuda_graph and style == "gemma3":
        pytest.skip("windows are not captured")
    model = tiny(style, head_dim=64).to("cuda", torch.bfloat16)
    prefix = prompt(48)
    prompts = [prefix + prompt(5 + i, 1 + i) for i in range(6)]
    got = fp8_engine(
        model, prompts, 40, kv_dtype="fp8", max_batch_tokens=64, use_cuda_graph=use_cuda_graph,
        num_blocks=128,
    )  # fmt: skip
    assert max(regrets(model, got, caches[0], prompts)) < 0.05
