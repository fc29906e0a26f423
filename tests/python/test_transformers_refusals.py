"""What pando_attn.generate refuses, by name, and how it leaves things then."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.17")
pytestmark = pytest.mark.torch

from tiny_models import VOCAB, greedy, prompt, tiny  # noqa: E402

import pando_attn  # noqa: E402
from pando_attn.transformers import KvCache, _generate  # noqa: E402


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"prompts": "text"}, TypeError, "prompts: got text, want token ids"),
        ({"prompts": ["text"]}, TypeError, "prompts: got text, want token ids"),
        ({"prompts": [[]]}, ValueError, r"prompts\[0\]: got no token"),
        ({"prompts": [[1], [VOCAB]]}, ValueError, rf"prompts\[1\]: got token {VOCAB}, want 0 to"),
        ({"prompts": [-1]}, ValueError, "prompts: got token -1"),
        ({"prompts": [0.5]}, TypeError, "prompts: got dtype float64, want integers"),
        ({"max_new_tokens": 0}, ValueError, "max_new_tokens: got 0, want 1 or more"),
        ({"num_samples": 0}, ValueError, "num_samples: got 0, want 1 or more"),
        ({"batch_size": 0}, ValueError, "batch_size: got 0, want 1 or more"),
        ({"prefill_tokens": -1}, ValueError, "prefill_tokens: got -1, want 1 or more"),
        ({"temperature": -1.0}, ValueError, "temperature: got -1.0, want 0"),
        ({"temperature": float("nan")}, ValueError, "temperature: got nan, want 0"),
        ({"temperature": "hot"}, TypeError, "temperature: got str, want a number"),
        ({"temperature": 1, "top_k": -1}, ValueError, "top_k: got -1, want 0"),
        ({"temperature": 1, "top_p": 0.0}, ValueError, "top_p: got 0.0, want more than 0"),
        ({"temperature": 1, "min_p": 2.0}, ValueError, "min_p: got 2.0, want 0 to 1"),
        ({"top_p": 0.5}, ValueError, "top_p: got one with temperature 0"),
        ({"stop_tokens": [0.5]}, TypeError, "stop_tokens: got dtype float64"),
        ({"cache": 3}, TypeError, "cache: got int, want a KvCache"),
        ({"model": 3}, TypeError, "model: got int, want a PreTrainedModel"),
    ],
)
def test_bad_arguments_are_refused_by_name(options, error, message):
    arguments = {
        "model": tiny("llama", layers=2),
        "prompts": [1, 2],
        "max_new_tokens": 2,
        **options,
    }
    with pytest.raises(error, match=message):
        pando_attn.generate(**arguments)


def test_models_that_are_not_supported_are_refused_by_name():
    model = tiny("llama", layers=2)
    with pytest.raises(ValueError, match="model: got one in training mode"):
        pando_attn.generate(model.train(), [1], max_new_tokens=1)
    model.eval()
    for name, value, message in (
        ("layer_types", ["chunked_attention"] * 2, "with layers of chunked_attention, want only"),
        ("attention_chunk_size", 8, "with attention_chunk_size, want one without"),
        ("rope_parameters", {"rope_type": "longrope"}, "with rope_type longrope"),
    ):
        before = getattr(model.config, name, None)
        setattr(model.config, name, value)
        with pytest.raises(NotImplementedError, match=f"model: got LlamaForCausalLM {message}"):
            pando_attn.generate(model, [1], max_new_tokens=1)
        setattr(model.config, name, before)
    t5 = transformers.T5ForConditionalGeneration(
        transformers.T5Config(vocab_size=8, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    )
    with pytest.raises(NotImplementedError, match="model: got T5ForConditionalGeneration, want a"):
        pando_attn.generate(t5.eval(), [1], max_new_tokens=1)


def test_head_dims_that_are_not_supported_are_refused_by_name():
    with pytest.raises(NotImplementedError, match="head_dim: got 20"):
        pando_attn.generate(tiny("llama", layers=2, head_dim=20), [1, 2], max_new_tokens=2)


def test_a_layer_of_another_shape_is_refused_by_name():
    model = tiny("qwen3", layers=2)
    model.config.head_dim = 16
    with pytest.raises(NotImplementedError, match=r"model: got layer 0 with \(kv_heads, head_dim"):
        pando_attn.generate(model, [1, 2], max_new_tokens=2)


def test_a_cache_of_another_model_is_refused_by_name():
    cache = KvCache(tiny("llama", layers=2), 64)
    with pytest.raises(ValueError, match="cache: got one of a model of ModelShape"):
        pando_attn.generate(tiny("qwen3", layers=2), [1], max_new_tokens=1, cache=cache)
    with pytest.raises(ValueError, match="num_tokens: got 0, want 1 or more"):
        KvCache(tiny("llama", layers=2), 0)
    with pytest.raises(ValueError, match="page_tokens: got 24"):
        KvCache(tiny("llama", layers=2), 64, page_tokens=24)


def test_a_full_cache_raises_and_is_left_as_it_was():
    model = tiny("llama")
    cache = KvCache(model, 64)
    with pytest.raises(pando_attn.OutOfPages):
        pando_attn.generate(model, prompt(40), num_samples=4, max_new_tokens=40, cache=cache)
    assert cache.used_bytes == 0 and cache.tree.live_sequences == 0
    assert model.config._attn_implementation == "sdpa"
    got = pando_attn.generate(model, prompt(40), max_new_tokens=8, cache=cache)
    assert got.tokens == [[greedy(model, prompt(40), 8)]]


def test_a_pass_that_fails_leaves_no_page_without_kv(monkeypatch):
    model = tiny("llama")
    cache = KvCache(model, 512)
    pando_attn.generate(model, prompt(40), max_new_tokens=8, cache=cache)

    def fails(*_):
        raise RuntimeError("on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(_generate, "forward", fails)
        with pytest.raises(RuntimeError, match="on purpose"):
            pando_attn.generate(model, prompt(60, 1), max_new_tokens=8, cache=cache)
    got = pando_attn.generate(model, prompt(60, 1), max_new_tokens=8, cache=cache)
    assert got.computed_prompt_tokens == 60
    assert got.tokens == [[greedy(model, prompt(60, 1), 8)]]
