"""Decode steps of pando_attn.generate as CUDA graphs, against the same steps without."""

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.17")
pytestmark = pytest.mark.torch

from tiny_models import prompt, regret, tiny  # noqa: E402

import pando_attn  # noqa: E402
from pando_attn.transformers import KvCache, _decode_graph  # noqa: E402


@pytest.fixture
def replays(monkeypatch):
    """What stands for a graph on the CPU: its replay does the captured work again, on the same
    tensors. The replays of each graph."""
    counts = []

    def capture(work, device):
        index = len(counts)
        counts.append(0)

        def replay():
            counts[index] += 1
            work()

        return replay

    monkeypatch.setattr(_decode_graph, "supported", lambda device: True)
    monkeypatch.setattr(_decode_graph, "capture", capture)
    return counts


def samples(model, ids, **options):
    options = {"num_samples": 6, "max_new_tokens": 24, "temperature": 1.0, **options}
    torch.manual_seed(3)
    return pando_attn.generate(model, ids, **options).tokens[0]


@pytest.mark.parametrize("kv_dtype", [None, "fp8"])
@pytest.mark.parametrize("style", ["llama", "gemma3"])
def test_replays_give_the_same_samples(style, kv_dtype, replays):
    model = tiny(style)
    want = samples(model, prompt(21), cuda_graph=False, kv_dtype=kv_dtype)
    assert replays == []
    assert samples(model, prompt(21), kv_dtype=kv_dtype) == want
    assert replays == [22]  # one token comes from the prompt, one from the run before the capture


def test_a_batch_that_shrinks(replays):
    model = tiny("llama")
    stops = {"stop_tokens": range(0, 300, 20), "max_new_tokens": 60, "num_samples": 8}
    want = samples(model, prompt(5), cuda_graph=False, **stops)
    lengths = sorted(map(len, want))
    assert lengths[4] < lengths[-1] - _decode_graph.FEWEST_STEPS
    assert samples(model, prompt(5), **stops) == want
    assert len(replays) > 1  # a smaller graph for what is left


def test_rows_without_a_sequence_write_to_no_page_of_another(replays):
    model = tiny("llama")
    stops = {"stop_tokens": range(0, 300, 30), "max_new_tokens": 40, "num_samples": 4}
    cache = KvCache(model, 1024)
    want = samples(model, prompt(40), cuda_graph=False, **stops)
    for _ in range(2):  # the second time with the KV that the first has kept
        assert samples(model, prompt(40), cache=cache, **stops) == want


def test_rows_without_a_sequence_are_numbers(replays, monkeypatch):
    model = tiny("llama")
    finite = []
    model.model.layers[0].self_attn.o_proj.register_forward_pre_hook(
        lambda module, inputs: finite.append(bool(inputs[0].isfinite().all()))
    )
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, shape: x.new_full(shape, torch.nan))
    samples(model, prompt(5), stop_tokens=range(0, 300, 20), max_new_tokens=60, num_samples=8)
    assert replays and all(finite)


def test_a_few_steps_need_no_graph(replays):
    model = tiny("llama")
    fewest = _decode_graph.FEWEST_STEPS
    samples(model, prompt(5), max_new_tokens=fewest)
    assert replays == []
    samples(model, prompt(5), max_new_tokens=fewest + 1)
    assert len(replays) == 1


def test_a_plan_that_outgrows_its_graph_gets_another(replays, monkeypatch):
    model = tiny("llama")
    want = samples(model, prompt(21), cuda_graph=False)
    update = pando_attn.Plan.update

    def refuse_once(self, *args, **options):
        if replays == [5]:
            raise ValueError("plan: got 9 bytes, want at most 8, what the graph knows")
        update(self, *args, **options)

    monkeypatch.setattr(pando_attn.Plan, "update", refuse_once)
    with pytest.raises(ValueError, match="what the graph knows"):
        samples(model, prompt(21))  # of the next graph, too: something else is wrong
    replays.clear()
    refusals = []

    def refuse(self, *args, **options):
        if replays == [5] and not refusals:
            refusals.append(1)
            raise ValueError("plan: got 9 bytes, want at most 8, what the graph knows")
        update(self, *args, **options)

    monkeypatch.setattr(pando_attn.Plan, "update", refuse)
    assert samples(model, prompt(21)) == want
    assert replays == [5, 16]


def test_a_model_that_can_not_be_captured_runs_without(replays, monkeypatch):
    model = tiny("llama")
    want = samples(model, prompt(21), cuda_graph=False)
    steps = []
    model.register_forward_pre_hook(lambda *_: steps.append(1))

    def capture(work, device):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(_decode_graph, "capture", capture)
    with pytest.warns(UserWarning, match="cuda_graph: got LlamaForCausalLM.*not permitted"):
        assert samples(model, prompt(21)) == want
    assert len(steps) == 24  # none twice: the other ranks of a group would wait for the second


def test_what_fails_before_the_capture_is_no_fault_of_the_graph(replays, monkeypatch):
    model = tiny("llama")

    def forward(*args):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(_decode_graph, "forward", forward)
    with pytest.raises(torch.OutOfMemoryError):
        samples(model, prompt(5))


def test_cuda_graph_is_a_flag():
    with pytest.raises(TypeError, match="cuda_graph: got int, want True or False"):
        samples(tiny("llama"), prompt(5), cuda_graph=1)


@pytest.mark.cuda
@pytest.mark.filterwarnings("error:cuda_graph")  # that it was not captured
@pytest.mark.parametrize("kv_dtype", [None, "fp8"])
@pytest.mark.parametrize("style", ["llama", "qwen3", "gemma3"])
def test_replays_on_cuda_give_the_tokens_of_single_launches(style, kv_dtype):
    model = tiny(style, head_dim=64).to("cuda", torch.bfloat16)
    greedy = {"temperature": 0.0, "max_new_tokens": 40, "kv_dtype": kv_dtype}
    for ids in (prompt(3), prompt(100)):
        eager = samples(model, ids, cuda_graph=False, **greedy)
        graphs = samples(model, ids, **greedy)
        assert graphs == eager  # the same kernels on the same numbers
        if kv_dtype is None:
            assert regret(model, ids, graphs[0]) < 0.02
    stops = {"stop_tokens": range(0, 300, 60), "max_new_tokens": 200, "num_samples": 16}
    tokens = samples(model, prompt(9), **stops)  # the page tables grow far past those of the start
    assert all(len(t) == 200 or t[-1] % 60 == 0 for t in tokens)


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs 2 GPUs")
@pytest.mark.filterwarnings("error:cuda_graph", "error:The CUDA Graph is empty")
def test_a_model_that_is_not_on_the_current_device_is_captured_where_it_is():
    greedy = {"temperature": 0.0, "max_new_tokens": 40}
    for device in ("cuda:0", "cuda:1"):  # the first capture of the process is not on the second
        model = tiny("llama", head_dim=64).to(device, torch.bfloat16)
        eager = samples(model, prompt(20), cuda_graph=False, **greedy)
        assert samples(model, prompt(20), **greedy) == eager
