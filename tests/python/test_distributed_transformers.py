"""Models of Transformers with attn_implementation="pando", their heads split over 2 processes."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("accelerate")  # Transformers loads no model with a tp_plan without it
pytestmark = pytest.mark.torch

PROMPT, SHORT, TOKENS = 40, 20, 12


def generated(rank, path, ids):
    """The greedy tokens of each way to generate, and the shapes of what this rank has."""
    import os

    os.environ["MASTER_ADDR"] = "127.0.0.1"
    import transformers
    from transformers import AutoModelForCausalLM, ContinuousBatchingConfig, GenerationConfig

    import pando_attn
    import pando_attn.transformers

    transformers.logging.set_verbosity_error()
    model = AutoModelForCausalLM.from_pretrained(
        path, tp_plan="auto", attn_implementation="pando", dtype=torch.float32
    ).eval()
    weight = model.model.layers[0].self_attn.k_proj.weight
    local = weight.to_local() if hasattr(weight, "to_local") else weight
    out = model.generate(torch.tensor([ids]), max_new_tokens=TOKENS, do_sample=False)
    sampled = pando_attn.generate(
        model, [ids, ids[:SHORT]], num_samples=2, max_new_tokens=TOKENS, temperature=0
    )
    batch = model.generate_batch(
        [ids, ids[:SHORT]],
        generation_config=GenerationConfig(max_new_tokens=TOKENS, do_sample=False, eos_token_id=-1),
        continuous_batching_config=ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=512),
    )
    return {
        "k_rows": local.shape[0],
        "generate": out[0, len(ids) :].tolist(),
        "samples": sampled.tokens,
        "kv_bytes": sampled.kv_bytes,
        "batch": [result.generated_tokens for result in batch.values()],
    }


@pytest.mark.parametrize("style", ["llama", "qwen3"])
def test_split_heads_give_the_same_tokens(rank_groups, tmp_path, style):
    from tiny_models import greedy, prompt, tiny

    import pando_attn

    model = tiny(style, layers=2)
    model.save_pretrained(tmp_path)
    ids = prompt(PROMPT)
    want = [greedy(model, x, TOKENS) for x in (ids, ids[:SHORT])]
    alone = pando_attn.generate(
        model, [ids, ids[:SHORT]], num_samples=2, max_new_tokens=TOKENS, temperature=0
    )
    for result in rank_groups(2).run(generated, str(tmp_path), ids):
        assert 2 * result["k_rows"] == model.model.layers[0].self_attn.k_proj.weight.shape[0]
        assert result["generate"] == want[0]
        assert result["samples"] == [[tokens, tokens] for tokens in want]
        assert result["batch"] == want
        assert 2 * result["kv_bytes"] == alone.kv_bytes


def refused(rank, path):
    from transformers import AutoModelForCausalLM

    import pando_attn
    import pando_attn.transformers

    model = AutoModelForCausalLM.from_pretrained(path, tp_plan="auto", dtype=torch.float32).eval()
    with pytest.raises(NotImplementedError, match="model: got 1 kv heads on 2 ranks, want ranks"):
        pando_attn.generate(model, [5, 6, 7], max_new_tokens=2)


def test_kv_heads_that_ranks_do_not_divide_are_refused(rank_groups, tmp_path):
    from tiny_models import tiny

    tiny("llama", layers=2, num_key_value_heads=1).save_pretrained(tmp_path)
    rank_groups(2).run(refused, str(tmp_path))


def generated_on_cuda(rank, path, ids, kv_dtype):
    """Greedy tokens of decode steps in CUDA graphs, their collectives in them, and without."""
    import os

    os.environ["MASTER_ADDR"] = "127.0.0.1"
    import warnings

    from transformers import AutoModelForCausalLM

    import pando_attn
    import pando_attn.transformers

    warnings.filterwarnings("error", "cuda_graph")  # that it was not captured
    model = AutoModelForCausalLM.from_pretrained(
        path, tp_plan="auto", attn_implementation="pando", dtype=torch.bfloat16
    ).eval()
    assert model.device == torch.device("cuda", rank)
    options = {"num_samples": 6, "max_new_tokens": 40, "temperature": 0, "kv_dtype": kv_dtype}
    return [
        pando_attn.generate(model, ids, cuda_graph=graphs, **options).tokens[0]
        for graphs in (True, False)
    ]


@pytest.mark.cuda
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs 2 GPUs")
@pytest.mark.parametrize("kv_dtype", [None, "fp8"])
@pytest.mark.parametrize("style", ["llama", "qwen3"])
def test_heads_split_over_two_gpus(tmp_path, style, kv_dtype):
    from ranks import Ranks
    from tiny_models import prompt, regret, tiny

    model = tiny(style, head_dim=64).to(torch.bfloat16)
    model.save_pretrained(tmp_path / "model")
    ids = prompt(100)
    group = Ranks(2, tmp_path, backend="nccl")
    try:
        results = group.run(generated_on_cuda, str(tmp_path / "model"), ids, kv_dtype)
    finally:
        group.close()
    for replayed, launched in results:
        assert replayed == launched == results[0][0]
        if kv_dtype is None:
            assert regret(model.to("cuda"), ids, replayed[0]) < 0.02
