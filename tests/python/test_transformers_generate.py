"""pando_attn.generate: samples and prompts that share KV, against Transformers' own generate."""

import itertools
import random

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.17")
pytestmark = pytest.mark.torch

from tiny_models import STYLES, VOCAB, greedy, prompt, regret, tiny  # noqa: E402

import pando_attn  # noqa: E402
from pando_attn.transformers import KvCache, _model  # noqa: E402

CUDA = pytest.param("cuda", marks=pytest.mark.cuda)


def shots(questions=5, shared=32):
    """Prompts that begin with the same tokens; one of them has no more, one is other."""
    first = prompt(shared)
    return [first + prompt(3 * i, 1 + i) for i in range(questions)] + [prompt(7, 99)]


@pytest.mark.parametrize("style", STYLES)
def test_samples_of_a_prompt_are_those_of_transformers(style):
    model = tiny(style)
    for tokens in (1, 15, 16, 17, 37):
        ids = prompt(tokens)
        want = greedy(model, ids, 40)
        got = pando_attn.generate(model, ids, num_samples=3, max_new_tokens=40)
        assert got.tokens == [[want] * 3]
        assert got.prompt_tokens == got.computed_prompt_tokens == tokens
        assert got.new_tokens == 120
        assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7}, {"top_k": 20}, {"top_p": 0.8}])
@pytest.mark.parametrize("min_p", [0.0, 0.02])
def test_random_samples_are_those_of_transformers(options, min_p):
    model = tiny("llama")
    ids = prompt(21)
    torch.manual_seed(5)
    want = model.generate(
        torch.tensor([ids]),
        do_sample=True,
        max_new_tokens=20,
        num_return_sequences=6,
        **{"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": min_p or None, **options},
    )[:, 21:]
    torch.manual_seed(5)
    got = pando_attn.generate(
        model,
        ids,
        num_samples=6,
        max_new_tokens=20,
        **{"temperature": 1.0, "min_p": min_p, **options},
    )
    assert got.tokens == [want.tolist()]


def test_a_generator_gives_the_same_samples_again():
    model = tiny("llama")
    runs = [
        pando_attn.generate(
            model,
            prompt(9),
            num_samples=4,
            max_new_tokens=8,
            temperature=1.0,
            generator=torch.Generator().manual_seed(seed),
        ).tokens
        for seed in (1, 1, 2)
    ]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize(
    "options",
    [{}, {"prefill_tokens": 1}, {"prefill_tokens": 7}, {"batch_size": 1}, {"batch_size": 4}],
)
@pytest.mark.parametrize("style", ["llama", "gemma3"])
def test_prompts_that_share_what_they_begin_with(style, options):
    model = tiny(style)
    prompts = shots()
    want = [greedy(model, ids, 20) for ids in prompts]
    got = pando_attn.generate(model, prompts, num_samples=2, max_new_tokens=20, **options)
    assert got.tokens == [[tokens] * 2 for tokens in want]
    assert got.prompt_tokens == sum(map(len, prompts))
    if "batch_size" not in options:  # the shared pages once, the one token whose logits are asked
        own = sum(len(ids) - 32 for ids in prompts[1:5]) + 7
        assert got.computed_prompt_tokens == 32 + own


def test_any_forest_of_prompts_gives_the_tokens_of_each():
    model = tiny("qwen3", layers=2)
    choice = random.Random(3)
    for seed in range(12):
        stems = [prompt(choice.randrange(1, 40), seed * 100 + i) for i in range(3)]
        prompts = [
            [*itertools.chain(*choice.sample(stems, choice.randrange(1, 4)))]
            for _ in range(choice.randrange(1, 9))
        ]
        tokens = choice.choice((1, 2, 17, 33))
        got = pando_attn.generate(
            model,
            prompts,
            num_samples=choice.randrange(1, 4),
            max_new_tokens=tokens,
            prefill_tokens=choice.choice((5, 64, 2048)),
            batch_size=choice.choice((2, 5, 256)),
        )
        for ids, samples in zip(prompts, got.tokens):
            assert all(sample == greedy(model, ids, tokens) for sample in samples)


def test_a_cache_is_found_again_by_tokens():
    model = tiny("gemma3")
    cache = KvCache(model, 1024)
    first = prompt(40)
    one = pando_attn.generate(model, first, max_new_tokens=24, cache=cache)
    assert one.computed_prompt_tokens == 40
    thought = first + one.tokens[0][0]
    two = pando_attn.generate(model, thought, num_samples=2, max_new_tokens=8, cache=cache)
    # The last new token was never fed to the model: 63 tokens, 48 of them in whole pages.
    assert two.computed_prompt_tokens == 64 - 48
    assert two.tokens == [[greedy(model, thought, 8)] * 2]
    again = pando_attn.generate(model, thought[:48], max_new_tokens=8, cache=cache)
    assert again.computed_prompt_tokens == 1
    assert again.tokens == [[greedy(model, thought[:48], 8)]]
    assert 0 < cache.used_bytes <= cache.nbytes
    cache.clear()
    assert cache.used_bytes == 0


def test_kv_of_a_prompt_is_kept_once():
    model = tiny("llama")
    token_bytes = 4 * 2 * 2 * 16 * 4  # layers, K and V, kv heads, head_dim, fp32
    got = pando_attn.generate(model, prompt(320), num_samples=16, max_new_tokens=17)
    assert got.kv_bytes == (320 + 16 * 16) * token_bytes


@pytest.mark.parametrize("size", [1, 4, 64])
def test_pages_of_any_size_give_the_same_tokens(size):
    model = tiny("gemma3")
    cache = KvCache(model, 1024, page_tokens=size)
    prompts = shots(3)
    got = pando_attn.generate(model, prompts, num_samples=2, max_new_tokens=20, cache=cache)
    assert got.tokens == [[greedy(model, ids, 20)] * 2 for ids in prompts]


def test_samples_end_with_a_stop_token():
    model = tiny("llama")
    ids = prompt(20)
    full = greedy(model, ids, 30)
    stop = full[9]
    want = full[: full.index(stop) + 1]
    got = pando_attn.generate(model, ids, num_samples=2, max_new_tokens=30, stop_tokens=[stop])
    assert got.tokens == [[want] * 2]
    model.generation_config.eos_token_id = [stop, VOCAB - 1]
    assert pando_attn.generate(model, ids, max_new_tokens=30).tokens == [[want]]
    got = pando_attn.generate(model, ids, max_new_tokens=30, stop_tokens=())
    assert got.tokens == [[full]]


def test_some_samples_end_before_others():
    model = tiny("llama")
    torch.manual_seed(11)
    free = pando_attn.generate(
        model, prompt(20), num_samples=8, max_new_tokens=30, temperature=1.0, stop_tokens=()
    )
    stops = range(3, 20)
    torch.manual_seed(11)
    got = pando_attn.generate(
        model,
        prompt(20),
        num_samples=8,
        max_new_tokens=30,
        temperature=1.0,
        stop_tokens=stops,
        return_logprobs=True,
    )
    lengths = {len(sample) for sample in got.tokens[0]}
    assert len(lengths) > 1 and len(free.tokens[0]) == 8
    for sample in got.tokens[0]:
        assert not set(sample[:-1]) & set(stops)
        assert len(sample) == 30 or sample[-1] in stops
    for sample, logprob in zip(got.tokens[0], got.logprobs[0]):
        assert logprob == pytest.approx(log_probability(model, prompt(20), sample), rel=1e-4)


def log_probability(model, ids, tokens):
    """Of the tokens after a prompt, by sdpa."""
    model.set_attn_implementation("sdpa")
    with torch.no_grad():
        rows = model(torch.tensor([ids + tokens])).logits[0, len(ids) - 1 : -1].log_softmax(-1)
    return float(rows.gather(-1, torch.tensor(tokens)[:, None]).sum())


@pytest.mark.parametrize("device", ["cpu", CUDA])
@pytest.mark.parametrize("style", ["qwen3", "gemma3", "mistral"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_takes_tokens_that_are_as_good(style, dtype, device):
    model = tiny(style, head_dim=64).to(device, dtype)
    prompts = shots()
    got = pando_attn.generate(model, prompts, num_samples=2, max_new_tokens=20)
    for ids, samples in zip(prompts, got.tokens):
        assert max(regret(model, ids, sample) for sample in samples) < 0.05


def test_prompts_are_lists_arrays_or_tensors():
    model = tiny("llama")
    ids = prompt(12)
    want = pando_attn.generate(model, ids, max_new_tokens=5).tokens
    for given in (torch.tensor(ids), torch.tensor(ids).numpy(), tuple(ids), [torch.tensor(ids)]):
        assert pando_attn.generate(model, given, max_new_tokens=5).tokens == want
    with pytest.raises(ValueError, match="prompts: got no token, want one or more"):
        pando_attn.generate(model, [], max_new_tokens=5)


def test_a_plan_is_made_once_a_step_for_each_kind_of_layer(plan_updates):
    pando_attn.generate(tiny("gemma3", layers=8), prompt(20), num_samples=4, max_new_tokens=6)
    assert len(plan_updates) == 2 * 6  # full and sliding; the prompt's pass gives the first token


def test_the_prompt_is_read_once_for_all_samples(monkeypatch):
    from pando_attn.transformers import _kv_cache

    roots = []
    plan_of = _kv_cache.StepPlans.plan

    def spy(self, shape, tables):
        plan = plan_of(self, shape, tables)
        roots.append([(s.token_end, s.sequences, s.shared) for s in plan.segments()][:1])
        return plan

    monkeypatch.setattr(_kv_cache.StepPlans, "plan", spy)
    pando_attn.generate(tiny("llama"), prompt(640), num_samples=16, max_new_tokens=4)
    assert roots[-1] == [(640, 16, True)]


def test_models_without_logits_to_keep_are_taken(monkeypatch):
    model = tiny("llama")
    want = greedy(model, prompt(20), 8)
    monkeypatch.setattr(_model, "_keeps_logits", lambda _: False)
    got = pando_attn.generate(model, prompt(20), num_samples=2, max_new_tokens=8)
    assert got.tokens == [[want] * 2]


def test_importing_all_needs_no_transformers():
    assert "generate" not in pando_attn.__all__


def test_generate_is_found_in_the_package():
    assert pando_attn.generate is pando_attn.transformers.generate
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        pando_attn.nothing  # noqa: B018
