"""Models of Transformers with attn_implementation="pando": ordinary batches, and masks."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.17")
pytestmark = pytest.mark.torch

from tiny_models import STYLES, prompt, tiny  # noqa: E402

from pando_attn._step_plans import Scoring  # noqa: E402
from pando_attn.transformers import visible_ranges  # noqa: E402
from pando_attn.transformers._attention import attention_forward, under_mask  # noqa: E402

CUDA = pytest.param("cuda", marks=pytest.mark.cuda)


def padded_batch():
    ids = torch.tensor([prompt(37, seed) for seed in range(3)])
    mask = torch.ones_like(ids)
    mask[0, :11] = 0
    mask[1, :3] = 0
    return ids, mask


# Ordinary batches.


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generate_gives_the_tokens_of_sdpa(style, cache):
    model = tiny(style)
    ids, mask = padded_batch()
    out = {}
    for name in ("sdpa", "pando"):
        model.set_attn_implementation(name)
        out[name] = model.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=40,
            do_sample=False,
            cache_implementation=cache,
        )
    assert torch.equal(out["sdpa"], out["pando"])


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize(("style", "head_dim"), [("qwen3", 64), ("gemma3", 64), ("gemma3", 256)])
def test_logits_in_bf16_are_near_those_of_sdpa(style, head_dim, device):
    model = tiny(style, head_dim=head_dim).to(device, torch.bfloat16)
    ids, mask = (x.to(device) for x in padded_batch())
    logits = {}
    for name in ("sdpa", "pando", "eager"):
        model.set_attn_implementation(name)
        with torch.no_grad():
            logits[name] = model(ids, attention_mask=mask).logits[mask.bool()].float()
    between = (logits["sdpa"] - logits["eager"]).abs().max()  # both round at other places
    assert (logits["pando"] - logits["sdpa"]).abs().max() <= 2 * between


def test_without_cache_and_mask_each_row_sees_what_is_before_it():
    model = tiny("llama")
    ids = torch.tensor([prompt(33)])
    logits = {}
    for name in ("sdpa", "pando"):
        model.set_attn_implementation(name)
        with torch.no_grad():
            logits[name] = model(ids, use_cache=False).logits
    torch.testing.assert_close(logits["pando"], logits["sdpa"], atol=1e-4, rtol=1e-4)


def test_packed_sequences_do_not_see_each_other():
    model = tiny("llama")
    ids = torch.tensor([prompt(20)])
    positions = torch.tensor([[*range(12), *range(8)]])
    model.set_attn_implementation("pando")
    with torch.no_grad():
        packed = model(ids, position_ids=positions, use_cache=False).logits
        alone = model(ids[:, 12:], use_cache=False).logits
    torch.testing.assert_close(packed[:, 12:], alone, atol=1e-4, rtol=1e-4)


def test_layers_of_one_mask_share_a_plan(plan_updates):
    model = tiny("gemma3", layers=8)
    model.set_attn_implementation("pando")
    model.generate(torch.tensor([prompt(10)]), max_new_tokens=6, do_sample=False)
    assert len(plan_updates) == 2 * 6  # full and sliding; the prompt's pass gives the first token


@pytest.mark.parametrize("tokens", [1, 2, 16, 33, 64])
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("transposed", [False, True])
def test_attention_under_no_mask_is_that_of_sdpa(tokens, rows, batch, transposed):
    if rows > tokens:
        pytest.skip("more rows than tokens")
    torch.manual_seed(tokens)
    query = torch.randn(batch, 6, rows, 24)
    key, value = (torch.randn(batch, 2, tokens, 24) for _ in range(2))
    if transposed:
        key, value = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (key, value))
    for causal in (False, True):
        seen = torch.ones(rows, tokens, dtype=torch.bool)
        if causal:
            seen = seen.tril(tokens - rows)
        want = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, scale=0.3, enable_gqa=True
        )
        got = under_mask(query, key, value, None, Scoring(0.3), causal)
        torch.testing.assert_close(got, want.transpose(1, 2), atol=1e-5, rtol=1e-5)


# Masks.


def test_masks_are_ranges():
    from transformers import masking_utils as masks

    causal = visible_ranges(1, 3, 5, q_offset=2)
    assert causal.tolist() == [[[[0, 3], [0, 4], [0, 5]]]]
    window = masks.sliding_window_causal_mask_function(2)
    assert visible_ranges(1, 3, 3, mask_function=window).tolist() == [[[[0, 1], [0, 2], [1, 3]]]]
    padding = torch.tensor([[True, True, True], [False, True, True]])
    padded = visible_ranges(2, 3, 3, attention_mask=padding)
    assert padded[:, 0].tolist() == [[[0, 1], [0, 2], [0, 3]], [[0, 0], [1, 2], [1, 3]]]
    assert visible_ranges(1, 0, 3).shape == (1, 1, 0, 2)


def test_masks_of_many_rows_are_those_of_few():
    from transformers import masking_utils as masks

    window = masks.sliding_window_causal_mask_function(7)
    ranges = visible_ranges(1, 700, 710, q_offset=10, mask_function=window)[0, 0]
    ends = torch.arange(11, 711)
    assert torch.equal(ranges[:, 1], ends.int())
    assert torch.equal(ranges[:, 0], (ends - 7).clamp(min=0).int())


def test_masks_with_gaps_are_refused():
    padding = torch.tensor([[True, False, True]])
    with pytest.raises(NotImplementedError, match="attention_mask: got a mask in which a row"):
        visible_ranges(1, 3, 3, attention_mask=padding)


@pytest.mark.parametrize("kind", ["bool", "additive"])
def test_masks_of_four_dimensions_are_taken(kind):
    query, key = torch.randn(2, 4, 5, 16), torch.randn(2, 2, 9, 16)
    seen = torch.ones(2, 1, 5, 9, dtype=torch.bool).tril(2)
    seen[1, :, :, :2] = False
    mask = seen if kind == "bool" else torch.where(seen, 0.0, torch.finfo(torch.float32).min)
    want = torch.nn.functional.scaled_dot_product_attention(
        query, key, key, attn_mask=seen, enable_gqa=True
    )
    got = under_mask(query, key, key, mask, Scoring(0.25), True)
    torch.testing.assert_close(got, want.transpose(1, 2), atol=1e-5, rtol=1e-5)


def test_a_mask_that_was_written_to_is_another():
    query, key = torch.randn(1, 2, 1, 16), torch.randn(1, 2, 9, 16)
    mask = torch.ones(1, 1, 1, 9, dtype=torch.bool)
    before = under_mask(query, key, key, mask, Scoring(0.25), True)
    mask[..., 4:] = False
    got = under_mask(query, key, key, mask, Scoring(0.25), True)
    want = under_mask(query, key[:, :, :4], key[:, :, :4], None, Scoring(0.25), True)
    torch.testing.assert_close(got, want)
    assert not torch.equal(got, before)


@pytest.mark.parametrize(
    "mask, message",
    [
        (torch.randn(1, 1, 5, 9), "attention_mask: got numbers that are added"),
        (torch.ones(1, 4, 5, 9, dtype=torch.bool), r"attention_mask: got shape \(1, 4, 5, 9\)"),
        (torch.ones(1, 1, 5, 8, dtype=torch.bool), r"want \(2, 1, 5, 9\)"),
        (torch.ones(1, 1, 0, 0, dtype=torch.bool), r"attention_mask: got shape \(1, 1, 0, 0\)"),
    ],
)
def test_other_masks_are_refused(mask, message):
    query, key = torch.randn(2, 4, 5, 16), torch.randn(2, 2, 9, 16)
    with pytest.raises(NotImplementedError, match=message):
        under_mask(query, key, key, mask, Scoring(0.25), True)


# What is refused.


@pytest.mark.parametrize(
    "change, error, message",
    [
        (
            {"pando": 1, "attention_mask": torch.ones(1, 1, 3, 3)},
            NotImplementedError,
            r"attention_mask: got shape \(1, 1, 3, 3\) of the model's own",
        ),
        ({"pando": 1, "is_causal": False}, NotImplementedError, "is_causal: got False"),
        ({"dropout": 0.1}, NotImplementedError, "dropout: got 0.1, want 0.0"),
        ({"position_bias": torch.zeros(1)}, NotImplementedError, "position_bias: got one"),
        ({"output_attentions": True}, NotImplementedError, "output_attentions: got True"),
        ({"value": torch.zeros(1, 2, 3, 8)}, NotImplementedError, "head_dim: got 16 of query"),
        (
            {"query": torch.zeros(1, 3, 3, 16)},
            ValueError,
            "query: got 3 heads, want a multiple of 2",
        ),
        (
            dict.fromkeys(("query", "key", "value"), torch.zeros(1, 2, 3, 260)),
            None,
            "head_dim: got 260",
        ),
        (
            dict.fromkeys(("query", "key", "value"), torch.zeros(1, 2, 3, 12)),
            None,
            "head_dim: got 12",
        ),
        (
            dict.fromkeys(("query", "key", "value"), torch.zeros(1, 2, 3, 16).double()),
            NotImplementedError,
            "query: got torch.float64, want one of float32, bfloat16, float16",
        ),
        ({"query": torch.zeros(1, 4, 3, 16, requires_grad=True)}, ValueError, "requires grad"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change, error, message):
    arguments = {
        "query": torch.zeros(1, 4, 3, 16),
        "key": torch.zeros(1, 2, 3, 16),
        "value": torch.zeros(1, 2, 3, 16),
        "attention_mask": None,
        **change,
    }
    with pytest.raises(error or NotImplementedError, match=message):
        attention_forward(torch.nn.Module(), **arguments)
