"""Engines of vLLM with Pando as their attention backend, against Transformers.

On a machine without a GPU it takes a build of vLLM for the CPU.
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("torch")
if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed", allow_module_level=True)
pytestmark = pytest.mark.torch

from tiny_models import greedy, prompt, regret, tiny  # noqa: E402

import pando_attn  # noqa: E402

HERE = pathlib.Path(__file__).parent
PROMPTS = [prompt(100) + prompt(5 + i, 1 + i) for i in range(6)] + [prompt(7, 9)]
ON_CUDA = {"dtype": "bfloat16", "attention_config": {"backend": "CUSTOM"}}


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """A folder of PYTHONPATH with the entry point of the package, as an installation has it."""
    folder = tmp_path_factory.mktemp("site")
    info = folder / "pando_attn-0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: pando-attn\nVersion: 0\n")
    (info / "entry_points.txt").write_text(
        "[vllm.general_plugins]\npando_attn = pando_attn.vllm:register\n"
    )
    return folder


@pytest.fixture
def engine(installed, tmp_path):
    """Runs an engine in a process of its own; what it answers."""

    def run(model, prompts, tokens=20, in_process=True, env=None, **options):
        model.save_pretrained(tmp_path / "model")
        job, out = tmp_path / "job.json", tmp_path / "out.json"
        options = {
            "dtype": "float32",
            "max_model_len": 512,
            "enforce_eager": True,
            "block_size": 16,  # which vLLM's own backend of the CPU refuses
            "kv_cache_memory_bytes": 64 << 20,
            "max_num_seqs": 16,
            **options,
        }
        out.unlink(missing_ok=True)
        job.write_text(
            json.dumps(
                {
                    "model": str(tmp_path / "model"),
                    "prompts": prompts,
                    "tokens": tokens,
                    "options": options,
                    "out": str(out),
                }
            )
        )
        path = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, str(HERE / "vllm_engine.py"), str(job)],
            env={
                **os.environ,
                "PYTHONPATH": path,
                "VLLM_ENABLE_V1_MULTIPROCESSING": str(int(not in_process)),
                "HF_HUB_OFFLINE": "1",
                "VLLM_NO_USAGE_STATS": "1",
                **(env or {}),
            },
            capture_output=True,
            text=True,
            timeout=280,
        )
        assert out.exists(), done.stdout[-4000:] + done.stderr[-4000:]
        return json.loads(out.read_text())

    return run


def cpu_build() -> bool:
    """Whether vLLM has its kernels for the CPU."""
    code = "import vllm._C, torch; torch.ops._C.init_cpu_memory_env"
    env = {**os.environ, "VLLM_TARGET_DEVICE": "cpu"}
    return (
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True).returncode == 0
    )


@pytest.fixture(scope="session")
def on_cpu():
    if not pando_attn.cuda_unavailable(0):
        pytest.skip("the GPU is taken")
    if not cpu_build():
        pytest.skip("this build of vLLM has no kernels for the CPU")
    return {"VLLM_TARGET_DEVICE": "cpu", "PANDO_VLLM_CPU": "1"}


@pytest.mark.parametrize("style", ["llama", "qwen3", "mistral", "gemma3"])
def test_an_engine_on_the_cpu_gives_the_tokens_of_transformers(style, on_cpu, engine):
    model = tiny(style, head_dim=64)
    want = [greedy(model, ids, 20) for ids in PROMPTS]
    got = engine(model, PROMPTS, env=on_cpu)
    assert got["tokens"] == [want, want]
    assert got["backends"] == ["PandoBackend"]
    assert got["shared_by"] == 6  # what its prefix caching gave them the same pages for


NGRAM = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
OPTIONS = {
    "processes of its own": {"in_process": False},
    "prompts in chunks": {"max_num_batched_tokens": 48},
    "blocks that vLLM cuts": {"block_size": 48},
    "compiled": {"enforce_eager": False},
    "draft tokens": {"speculative_config": {**NGRAM, "prompt_lookup_min": 1}},
    "two ranks": {
        "in_process": False,
        "tensor_parallel_size": 2,
        "env": {"VLLM_CPU_SIM_MULTI_NUMA": "1"},  # so that they may be of one node
    },
}


@pytest.mark.parametrize("way", OPTIONS)
def test_ways_to_run_an_engine(way, on_cpu, engine):
    model = tiny("qwen3", head_dim=64)
    want = [greedy(model, ids, 12) for ids in PROMPTS]
    options = dict(OPTIONS[way])
    got = engine(model, PROMPTS, 12, env={**on_cpu, **options.pop("env", {})}, **options)
    assert got["tokens"] == [want, want]
    if options.get("in_process", True):
        assert got["shared_by"] == 6


def fp8_regret(model, outputs, device="cpu"):
    """Under the same model with K and V that are rounded, with the scales of no checkpoint: 1."""
    import torch
    from rounded_models import NAME, round_kv

    ones = torch.ones(model.config.num_hidden_layers, 2, device=device)
    round_kv(ones, ones)
    model = model.to(device)
    return max(regret(model, ids, out, NAME) for ids, out in zip(PROMPTS, outputs))


@pytest.mark.parametrize("style", ["llama", "gemma3"])
def test_an_engine_on_the_cpu_with_fp8_kv(style, on_cpu, engine):
    model = tiny(style, head_dim=64)
    got = engine(model, PROMPTS, env=on_cpu, kv_cache_dtype="fp8")
    assert got["backends"] == ["PandoBackend"]
    assert got["shared_by"] == 6
    for tokens in got["tokens"]:
        assert fp8_regret(model, tokens) < 1e-2


@pytest.mark.cuda
@pytest.mark.parametrize("style", ["llama", "gemma3"])
def test_an_engine_on_cuda_with_fp8_kv(style, engine):
    import torch

    model = tiny(style, head_dim=64).to(torch.bfloat16)
    got = engine(
        model,
        PROMPTS,
        **ON_CUDA,
        kv_cache_dtype="fp8",
    )
    assert got["backends"] == ["PandoBackend"]
    for tokens in got["tokens"]:
        assert fp8_regret(model, tokens, "cuda") < 0.05


def test_the_benchmark_runs(on_cpu, installed):
    small = "--engine pando --samples 4 --prompt-tokens 300 --new-tokens 3 --hidden 128 --runs 1"
    path = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [
            sys.executable,
            HERE.parents[1] / "bench/vllm_samples.py",
            "--engine=pando",
            *small.split(),
        ],
        env={**os.environ, **on_cpu, "PYTHONPATH": path, "VLLM_ENABLE_V1_MULTIPROCESSING": "0"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("RECORD ")]
    assert lines, done.stderr[-4000:]
    record = json.loads(lines[0].removeprefix("RECORD "))
    assert record["case"] == "pando" and record["tokens_per_second"] > 0


@pytest.mark.cuda
@pytest.mark.parametrize("enforce_eager", [True, False])
@pytest.mark.parametrize("style", ["llama", "qwen3", "gemma3"])
def test_an_engine_on_cuda(style, enforce_eager, engine):
    import torch

    model = tiny(style, head_dim=64).to(torch.bfloat16)
    got = engine(
        model,
        PROMPTS,
        **ON_CUDA,
        enforce_eager=enforce_eager,
    )
    assert got["backends"] == ["PandoBackend"]
    assert got["shared_by"] == 6
    model = model.to("cuda")
    for tokens in got["tokens"]:
        assert max(regret(model, ids, out) for ids, out in zip(PROMPTS, tokens)) < 0.05
