"""The examples of models of Transformers run, and say that Pando agrees with sdpa."""

import importlib
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.17")
pytestmark = pytest.mark.torch

FOLDER = Path(__file__).parents[2] / "examples" / "python"
SMALL = {
    "best_of_n": ["--samples", "64", "--prompt-tokens", "70", "--new-tokens", "12"],
    "few_shot": ["--questions", "9", "--shots", "8", "--shot-tokens", "11"],
    "tree_of_thoughts": ["--depth", "3", "--keep", "2", "--branch", "3", "--question-tokens", "50"],
}
CUDA = pytest.param(
    ["--device", "cuda", "--dtype", "bf16", "--shape", "small"], marks=pytest.mark.cuda
)


@pytest.mark.parametrize("options", [["--shape", "tiny"], CUDA])
@pytest.mark.parametrize("name", list(SMALL))
def test_example_agrees(name, options, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    module = importlib.import_module(name)
    try:
        module.main([*SMALL[name], *options])
    finally:
        for loaded in (name, "common"):
            sys.modules.pop(loaded, None)
    said = capsys.readouterr().out
    assert "with Pando" in said and "tokens/s" in said and "KV memory" in said
    assert said.rstrip().count("agree") == 1 and "WRONG" not in said
    if options == ["--shape", "tiny"]:
        assert "tokens identical" in said


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_example_says_when_tokens_are_wrong(dtype, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    module = importlib.import_module("few_shot")
    honest = module.of_generated

    def wrong(result, seconds):
        run = honest(result, seconds)
        run.tokens[3][0][2] ^= 1
        return run

    monkeypatch.setattr(module, "of_generated", wrong)
    with pytest.raises(SystemExit):
        module.main([*SMALL["few_shot"], "--shape", "tiny", "--dtype", dtype])
    assert "WRONG" in capsys.readouterr().out
    for loaded in ("few_shot", "common"):
        sys.modules.pop(loaded, None)
