"""Plans for the numbers of a file of `pando calibrate`."""

import json

import pytest
from batch import Batch

RATE = {
    "narrow_rows": 0,
    "row_granule": 64,
    "narrow_ns": 0.0,
    "convert_ns": 0.0,
    "wide_ns": 0.0007,
    "softmax_ns": 0.05,
    "peak_flops_per_us": 790e6,
}
PROFILE = {
    "format": 1,
    "name": "a card (calibrated)",
    "backend": "cuda",
    "workers": 100,
    "row_tile": 128,
    "kv_tile": 128,
    "launch_us": 10.5,
    "item_us": 1.0,
    "partial_row_us": 0.02,
    "dram_bytes_per_us": 3.0e6,
    "cache_bytes_per_us": 5.5e6,
    "cache_bytes": 40_000_000,
    "rates": {"fp32": RATE, "bf16": RATE, "fp16": RATE},
    "schedule": {
        "whole_tile_us": 1.7,
        "split_tile_us": 1.4,
        "run_us": 0.2,
        "unit_us": 1.5,
        "merge_us": 3.5,
        "turn_us": 0.4,
        "lookup_us": 2.8,
        "l2_bytes_per_us": 8.0e6,
    },
    "origin": {
        "device": "a card",
        "driver": "",
        "clock_mhz": 0.0,
        "date": "",
        "version": "",
        "commit": "",
    },
}


def stored(tmp_path, **changes):
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(PROFILE | changes))
    return path


def plan_for(path, **options):
    batch = Batch([300] * 4, [1] * 4, prefix=8, dtype="bf16")
    return batch.plan(device="h100", profile=path, **options)


def test_plan_is_made_for_the_profile(tmp_path):
    plan = plan_for(stored(tmp_path))
    said = json.loads(plan.json())
    assert (said["device"], said["workers"]) == ("a card (calibrated)", 100)
    slower = plan_for(str(stored(tmp_path, launch_us=110.5)))
    assert slower.predicted_us == pytest.approx(plan.predicted_us + 100)


def test_profile_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"profile.launch_us: got -1, want 0 or more"):
        plan_for(stored(tmp_path, launch_us=-1))
    with pytest.raises(ValueError, match=r"profile: got one for cuda, want one for the device cpu"):
        Batch([300], [1]).plan(profile=stored(tmp_path))
    with pytest.raises(IsADirectoryError, match="profile: Is a directory: '/'"):
        plan_for("/")
    with pytest.raises(TypeError, match="profile: got int, want the path of a file"):
        plan_for(5)
    with pytest.raises(FileNotFoundError, match="profile: No such file"):
        plan_for(tmp_path / "absent.json")
    (tmp_path / "empty.json").touch()
    for path in (tmp_path / "empty.json", "/dev/null"):
        with pytest.raises(ValueError, match="profile: got .*, which is empty, want a file"):
            plan_for(path)


def test_plan_without_a_profile_is_for_the_stored_one():
    assert "H100" in json.loads(plan_for(None).json())["device"]
