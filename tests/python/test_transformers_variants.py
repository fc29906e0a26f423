"""Models of Transformers with capped scores (Gemma 2) and with attention sinks (gpt-oss)."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.17")
pytestmark = pytest.mark.torch

from tiny_models import VOCAB, WINDOW, prompt, regret  # noqa: E402

import pando_attn  # noqa: E402
from pando_attn.transformers._attention import attention_forward  # noqa: E402


def tiny(style, head_dim=32):
    """Weights so large that caps and sinks decide which token comes next."""
    sizes = {
        "vocab_size": VOCAB,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": head_dim,
        "sliding_window": WINDOW,
        "max_position_embeddings": 512,
        "eos_token_id": None,
        "pad_token_id": 0,
        "attn_implementation": "eager",
    }
    torch.manual_seed(0)
    if style == "gemma2":
        config = transformers.Gemma2Config(**sizes, attn_logit_softcapping=2.0)
        model = transformers.Gemma2ForCausalLM(config)
    else:
        config = transformers.GptOssConfig(**sizes, num_local_experts=2, num_experts_per_tok=1)
        model = transformers.GptOssForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("sinks"):
            parameter.data.normal_(1.0, 2.0)
        elif parameter.ndim > 1:
            parameter.data.normal_(0, 0.2)
    return model.eval()


def logits(model, ids, implementation, **options):
    model.set_attn_implementation(implementation)
    with torch.no_grad():
        return model(torch.tensor(ids), **options).logits


@pytest.mark.parametrize("style", ["gemma2", "gpt_oss"])
def test_forward_is_that_of_eager_attention(style):
    model = tiny(style)
    ids = [prompt(50), prompt(50, 1)]
    want = logits(model, ids, "eager")
    got = logits(model, ids, "pando")
    torch.testing.assert_close(got, want, rtol=2e-4, atol=2e-4 * float(want.abs().max()))


@pytest.mark.parametrize("style", ["gemma2", "gpt_oss"])
def test_what_is_tested_makes_a_difference(style):
    model = tiny(style)
    want = logits(model, [prompt(50)], "eager")
    if style == "gemma2":
        for layer in model.model.layers:
            layer.self_attn.attn_logit_softcapping = None
    else:
        for layer in model.model.layers:
            layer.self_attn.sinks.data.fill_(-1e9)
    assert (logits(model, [prompt(50)], "eager") - want).abs().max() > 0.01 * want.abs().max()


@pytest.mark.parametrize("style", ["gemma2", "gpt_oss"])
def test_generate_is_that_of_eager_attention(style):
    model = tiny(style)
    ids = prompt(40)
    out = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
    got = pando_attn.generate(model, ids, num_samples=2, max_new_tokens=12)
    assert got.tokens == [[out[0, len(ids) :].tolist()] * 2]


def replayed(model, ids, cache, **options):
    return pando_attn.generate(
        model, ids, num_samples=2, max_new_tokens=20, cache=cache, **options
    ).tokens


@pytest.mark.cuda
@pytest.mark.filterwarnings("error:cuda_graph")  # that it was not captured
def test_a_decode_graph_is_that_of_the_caps_of_its_call():
    model = tiny("gemma2", head_dim=64).to("cuda", torch.bfloat16)
    ids = prompt(40)
    cache = pando_attn.transformers.KvCache(model, 1024)
    capped = replayed(model, ids, cache)
    assert capped == replayed(model, ids, cache, cuda_graph=False)
    for layer in model.model.layers:
        layer.self_attn.attn_logit_softcapping = 0.05
    # The KV of the prompt depends on the caps too.
    fresh = pando_attn.transformers.KvCache(model, 1024)
    lower = replayed(model, ids, fresh)
    assert lower == replayed(model, ids, fresh, cuda_graph=False) != capped


@pytest.mark.cuda
def test_generate_on_cuda():
    model = tiny("gemma2", head_dim=64).to("cuda", torch.bfloat16)
    ids = prompt(40)
    got = pando_attn.generate(model, ids, num_samples=2, max_new_tokens=12)
    assert max(regret(model, ids, out, "eager") for out in got.tokens[0]) < 0.05


@pytest.mark.cuda
def test_sinks_on_cuda_are_those_of_the_cpu():
    module = torch.nn.Module()
    query = torch.randn(1, 4, 30, 64).to(torch.bfloat16)
    key = torch.randn(1, 2, 30, 64).to(torch.bfloat16)
    mask = torch.ones(30, 30, dtype=torch.bool).tril().view(1, 1, 30, 30)
    given = (query, key, key, mask, torch.tensor([0.0, -np.inf, 2.0, 1.0]))
    want, got = (
        attention_forward(module, q, k, v, m, s_aux=s)[0]
        for q, k, v, m, s in (given, [tensor.cuda() for tensor in given])
    )
    torch.testing.assert_close(got.float().cpu(), want.float(), atol=0.03, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_of_padding_are_zero_beside_sinks(dtype):
    query = torch.randn(1, 4, 3, 16).to(dtype)
    key = torch.randn(1, 2, 3, 16).to(dtype)
    mask = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    mask[..., 2, :] = True
    sinks = torch.tensor([0.0, -np.inf, 2.0, 1.0], dtype=dtype)
    out, _ = attention_forward(torch.nn.Module(), query, key, key, mask, s_aux=sinks)
    assert (out[:, :2] == 0).all()
    scores = query.float() @ key.float().repeat_interleave(2, 1).transpose(2, 3) / 4
    both = torch.cat((scores, sinks.float().view(1, 4, 1, 1).expand(1, 4, 3, 1)), -1)
    want = both.softmax(-1)[..., :-1] @ key.float().repeat_interleave(2, 1)
    atol = 1e-5 if dtype == torch.float32 else 0.03
    torch.testing.assert_close(out[0, 2].float(), want[0, :, 2], atol=atol, rtol=0)
