"""bench/samples_on_device.py on the CPU: every way runs, and the logits agree."""

import importlib
import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5.17")
pytestmark = pytest.mark.torch

FOLDER = Path(__file__).parents[2] / "bench"
SMALL = ["--shape", "tiny", "--device", "cpu", "--samples", "4", "--prompt-tokens", "256"]


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_every_way_is_measured(dtype, monkeypatch, capsys):
    monkeypatch.syspath_prepend(FOLDER)
    module = importlib.import_module("samples_on_device")
    tokens = ["--new-tokens", "10", "--engine-tokens", "6"]
    try:
        with pytest.raises(SystemExit) as ended:
            module.main([*SMALL, *tokens, "--dtype", dtype])
    finally:
        for loaded in ("samples_on_device", "attention_times", "common"):
            sys.modules.pop(loaded, None)
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    records = {line["case"]: line for line in lines}
    assert ended.value.code == 0 and records["logits against fp32"]["right"]
    for way in module.WAYS:
        assert records[way]["tokens_per_s"] > 0
    for way in ("sdpa", "sdpa, prompt once", "pando, single launches"):
        assert records[way]["attention_us"] > 0
    assert "attention_us" not in records["pando"]  # of a replay nobody knows
    assert records["pando against"]["KV: sdpa"] > 1
