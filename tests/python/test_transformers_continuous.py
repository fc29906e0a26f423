"""Transformers' continuous batching with attn_implementation="pando"."""

import logging
import types

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.17")
pytestmark = pytest.mark.torch

from tiny_models import STYLES, greedy, prompt, regret, tiny  # noqa: E402

import pando_attn  # noqa: E402
from pando_attn.transformers import _continuous, _engine  # noqa: E402


def engine(model, prompts, tokens=30, config=transformers.ContinuousBatchingConfig, **options):
    """Greedy tokens of continuous batching, in the order of the prompts."""
    logging.getLogger("ContinuousBatchingLogger").setLevel(logging.CRITICAL)
    made = config(**{"num_blocks": 64, "max_batch_tokens": 24, page_size(): 16, **options})
    results = model.generate_batch(
        prompts,
        generation_config=transformers.GenerationConfig(
            max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
        ),
        continuous_batching_config=made,
        progress_bar=False,
    )
    assert not [r.error for r in results.values() if r.error]
    return [results[key].generated_tokens for key in sorted(results)]


def page_size():
    """What the tokens of a page are called in this version."""
    return (
        "page_size"
        if hasattr(transformers.ContinuousBatchingConfig(), "page_size")
        else "block_size"
    )


@pytest.mark.parametrize("style", STYLES)
def test_continuous_batching_gives_the_tokens_of_generate(style):
    model = tiny(style)
    prompts = [prompt(26), prompt(40, 1), [*prompt(26), 7, 8, 9], prompt(1, 2), prompt(60, 3)]
    want = [greedy(model, ids, 30) for ids in prompts]
    model.set_attn_implementation("pando")
    assert engine(model, prompts) == want
    assert model.config._attn_implementation == "pando"


@pytest.mark.parametrize("size", [4, 8, 64])
def test_continuous_batching_takes_pages_of_any_power_of_two(size):
    model = tiny("gemma3")
    prompts = [prompt(26), prompt(40, 1)]
    want = [greedy(model, ids, 20) for ids in prompts]
    model.set_attn_implementation("pando")
    assert engine(model, prompts, 20, **{page_size(): size, "num_blocks": 1024 // size}) == want


def test_continuous_batching_reads_shared_pages_once(monkeypatch):
    plans = []
    run = _continuous.StepPlans.plan

    def spy(self, shape, tables):
        plan = run(self, shape, tables)
        plans.append([(s.token_end, s.sequences) for s in plan.segments() if s.parent < 0])
        return plan

    model = tiny("llama")
    prefix = prompt(48)
    prompts = [prefix + prompt(5 + i, 1 + i) for i in range(6)]
    want = [greedy(model, ids, 12) for ids in prompts]
    model.set_attn_implementation("pando")
    monkeypatch.setattr(_continuous.StepPlans, "plan", spy)
    got = engine(model, [prefix, *prompts], 12, max_batch_tokens=64)
    assert got[1:] == want
    assert [(48, 6)] in plans or [(48, 7)] in plans  # its prefix caching gave them the same pages


def test_continuous_batching_refuses_pages_of_another_size():
    model = tiny("llama")
    model.set_attn_implementation("pando")
    with pytest.raises((AssertionError, ValueError), match="page_tokens: got 24"):
        engine(model, [prompt(30)], 4, **{page_size(): 24})


def test_paged_pando_is_for_continuous_batching():
    with pytest.raises(ValueError, match=r"attn_implementation: got paged\|pando without"):
        _engine.paged_attention_forward(None, None, None, None, None)


def test_other_implementations_are_served_as_before():
    model = tiny("llama")
    want = greedy(model, prompt(20), 8)
    assert engine(model, [prompt(20)], 8) == [want]


@pytest.mark.cuda
@pytest.mark.parametrize("style", ["qwen3", "gemma3", "mistral"])
def test_continuous_batching_on_cuda(style):
    model = tiny(style, head_dim=64).to("cuda", torch.bfloat16)
    prefix = prompt(48)
    prompts = [prefix + prompt(5 + i, 1 + i) for i in range(6)]
    model.set_attn_implementation("pando")
    got = engine(model, prompts, 12, max_batch_tokens=64, use_cuda_graph=False)
    assert max(regret(model, ids, out) for ids, out in zip(prompts, got)) < 0.05


@pytest.mark.cuda
@pytest.mark.parametrize("use_async", [False, True])
def test_cuda_graphs_of_continuous_batching(use_async):
    model = tiny("qwen3", head_dim=64).to("cuda", torch.bfloat16)
    prefix = prompt(48)
    prompts = [prefix + prompt(5 + i, 1 + i) for i in range(6)] + [prompt(70, 9)]
    model.set_attn_implementation("pando")
    options = {"max_batch_tokens": 64, "use_async_batching": use_async, "num_blocks": 128}
    got = engine(model, prompts, 100, use_cuda_graph=True, **options)
    assert max(regret(model, ids, out) for ids, out in zip(prompts, got)) < 0.05


@pytest.mark.cuda
def test_cuda_graphs_of_continuous_batching_with_windows_are_refused():
    model = tiny("gemma3").to("cuda", torch.bfloat16)
    model.set_attn_implementation("pando")
    with pytest.raises((AssertionError, NotImplementedError), match="use_cuda_graph: got"):
        engine(model, [prompt(30)], 4, use_cuda_graph=True)


class Replays:
    """What stands for a CUDA graph on the CPU: it does the captured work again."""

    count = 0
    running = False

    def __init__(self, work):
        self.work = work

    def replay(self):
        Replays.count += 1
        Replays.running = True
        try:
            self.work()
        finally:
            Replays.running = False

    def reset(self):
        pass


@pytest.fixture
def graphs(monkeypatch):
    """Continuous batching with graphs, as far as they can be without a GPU."""
    from transformers.generation.continuous_batching import model_runner

    update = pando_attn.Plan.update

    def not_in_a_replay(*args, **options):
        assert not Replays.running, "a replay runs no host code"
        update(*args, **options)

    def capture(self, forward, stream, *args):
        forward(*args)
        self.inputs_and_outputs.set_graph(Replays(lambda: forward(*args)))

    init = model_runner.ModelRunner.__init__

    def with_graphs(self, *args, **options):
        init(self, *args, **options)
        self.use_cuda_graph_varlen = self.pad_inputs = True
        self.inputs_and_outputs.use_cuda_graph_varlen = True  # sizes are padded, too

    Replays.count = 0
    monkeypatch.setattr(pando_attn.Plan, "update", not_in_a_replay)
    monkeypatch.setattr(model_runner.ModelRunner, "__init__", with_graphs)
    monkeypatch.setattr(model_runner.ModelRunner, "_capture_graph", capture)
    return Replays


PADDING = {"q_padding_interval_size": 8, "kv_padding_interval_size": 64}


@pytest.mark.parametrize("style", ["llama", "qwen3"])
def test_a_graph_of_continuous_batching_is_replayed_with_the_plan_of_its_step(style, graphs):
    model = tiny(style)
    prompts = [prompt(26), prompt(40, 1), [*prompt(26), 7, 8, 9], prompt(1, 2), prompt(60, 3)]
    want = [greedy(model, ids, 30) for ids in prompts]
    model.set_attn_implementation("pando")
    assert engine(model, prompts, **PADDING) == want
    assert graphs.count > 20


def test_a_plan_that_outgrows_a_graph_of_continuous_batching_gets_another(graphs, monkeypatch):
    model = tiny("llama")
    want = greedy(model, prompt(20), 30)
    update = _engine.ContinuousStep.update
    refused = []

    def refuse(self):
        if graphs.count == 10 and not refused:
            refused.append(1)
            raise ValueError("plan: got 9 bytes, want at most 8, what the graph knows")
        update(self)

    monkeypatch.setattr(_engine.ContinuousStep, "update", refuse)
    model.set_attn_implementation("pando")
    assert engine(model, [prompt(20)], **PADDING) == [want]
    assert refused and graphs.count > 20


@pytest.mark.parametrize("most", [1, 2])
def test_graphs_of_continuous_batching_are_kept_up_to_a_limit(most, graphs, monkeypatch):
    compute = _engine._Engines.compute_in_graph
    kept, captured = [], []

    def watch(self, runner, kwargs, forward):
        before = set(map(id, self._plans_of_graph))
        compute(self, runner, kwargs, forward)
        captured.extend(set(map(id, self._plans_of_graph)) - before)
        kept.append(len(self._plans_of_graph))

    before = len(_engine._engines._plans_of_graph)
    monkeypatch.setattr(_engine, "MOST_GRAPHS", most)
    monkeypatch.setattr(_engine._Engines, "compute_in_graph", watch)
    model = tiny("llama")
    prompts = [prompt(26), prompt(40, 1), prompt(1, 2), prompt(60, 3)]
    want = [greedy(model, ids, 30) for ids in prompts]
    model.set_attn_implementation("pando")
    assert engine(model, prompts, **PADDING) == want
    assert len(captured) > most and max(kept) <= before + most
    assert graphs.count > 10  # those that are kept are replayed


@pytest.mark.parametrize("pairs", [False, True])
def test_the_graphs_that_were_used_last_are_kept(pairs, monkeypatch):
    waits = []
    buffer = types.SimpleNamespace(_storage={})
    of = types.SimpleNamespace(graphs=buffer)
    stream = types.SimpleNamespace(synchronize=lambda: waits.append(1))
    ios = types.SimpleNamespace(compute_stream=stream)
    if pairs:
        ios.current_pair, ios.io_pairs = 1, [None, types.SimpleNamespace(device_io=of)]
    else:
        vars(of).update(vars(ios))
        ios = of
    monkeypatch.setattr(_engine, "MOST_GRAPHS", 2)
    for key in (1, 2, 1, 3, 1, 2):
        buffer._storage.setdefault(key, f"graph {key}")
        of._get_graph_key = lambda key=key: key
        _engine._keep_those_used_last(ios)
    assert list(buffer._storage) == [1, 2]
    assert len(waits) == 2  # only where one is dropped
