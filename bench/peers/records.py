"""What a line of JSON says about the machine and the case, besides the times."""

from __future__ import annotations

import datetime
import functools
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import pando_attn

from .decoder import Decoder
from .workloads import Shape

_ROOT = Path(__file__).parents[2]
ELEMENT_BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}


def commit_of_tree() -> str:
    """The commit that the sources are of, "-dirty" after it when they differ; or "unknown"."""
    command = ["git", "-C", str(_ROOT), "describe", "--always", "--dirty", "--abbrev=7"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return done.stdout.strip()


def command_text(program: str, words: list[str]) -> str:
    """What a reader types for the same record; where it went is not part of it."""
    kept = [program]
    for before, word in zip(["", *words], words):
        if before == "--trace":
            word = word.rpartition("/")[2]
        if before != "--out" and not word.startswith("--out"):
            kept.append(word)
    return " ".join(kept)


def shape_fields(shape: Shape, dtype: str) -> dict[str, Any]:
    return {**shape.fields(), "dtype": dtype, "layout": "nhd"}


@functools.cache
def device_fields(device: str) -> dict[str, Any]:
    if device == "cpu":
        return {
            "backend": "cpu",
            "device": _cpu_name(),
            "simd": pando_attn.simd_name(),
            "threads": torch.get_num_threads(),
        }
    return {
        "backend": "cuda",
        "device": torch.cuda.get_device_name(),
        "driver": _nvidia_smi("driver_version"),
        "runtime": torch.version.cuda,
    }


def clock_fields(device: str) -> dict[str, Any]:
    """Read just after a measurement: on the CPU how many threads want to run, its own too."""
    if device == "cpu":
        return {"load": round(os.getloadavg()[0], 2)}
    try:
        return {"sm_clock_mhz": torch.cuda.clock_rate()}
    except (ImportError, RuntimeError):  # needs nvidia-ml-py
        return {}


def _nvidia_smi(field: str) -> str:
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.splitlines()[0].strip()


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.machine()


@functools.cache
def ceilings(device: str, dtype: str) -> tuple[float, float]:
    """(bytes a µs, FLOPs a µs) of the profile that Pando plans with for this device."""
    bytes_bound = _roof(device, dtype, q_heads=1, kv_len=1 << 20)
    flops_bound = _roof(device, dtype, q_heads=1 << 12, kv_len=1 << 12)
    return bytes_bound["bytes"] / bytes_bound["us"], flops_bound["flops"] / flops_bound["us"]


def _roof(device: str, dtype: str, q_heads: int, kv_len: int) -> dict[str, float]:
    page = 64
    pages = list(range(kv_len // page))
    heads = {"q_heads": q_heads, "kv_heads": 1, "head_dim": 128, "dtype": dtype}
    tables = ([0, 1], [kv_len], [0, len(pages)], pages)
    cost = json.loads(pando_attn.plan(*tables, page, device=device, **heads).json())["cost"]
    return {
        "us": cost["roof_us"],
        "bytes": cost["kv_bytes"] + cost["io_bytes"],
        "flops": cost["flops"],
    }


def roof_fields(shape: Shape, dtype: str, device: str) -> dict[str, Any]:
    bytes_per_us, flops_per_us = ceilings(device, dtype)
    size, flops = shape.bytes(ELEMENT_BYTES[dtype]), shape.flops()
    by_bytes, by_flops = size / bytes_per_us, flops / flops_per_us
    return {
        "bytes": size,
        "flops": flops,
        "ceilings": "of Pando's profile of the device",
        "bandwidth_gb_s": round(bytes_per_us / 1e3, 3),
        "peak_gflop_s": round(flops_per_us / 1e3, 3),
        "roof_us": round(max(by_bytes, by_flops), 4),
        "bound": "bandwidth" if by_bytes >= by_flops else "flops",
    }


def layers_fields(attention: dict[str, Any], decoder: Decoder) -> dict[str, Any]:
    """What differs for a step of a model: every layer reads its weights once, and attends."""
    weights_us = decoder.weight_bytes / (1e3 * attention["bandwidth_gb_s"])
    return {
        "layers": decoder.layers,
        "weight_bytes": decoder.layers * decoder.weight_bytes,
        "bytes": decoder.layers * (attention["bytes"] + decoder.weight_bytes),
        "attention_roof_us": attention["roof_us"],
        "roof_us": round(decoder.layers * (attention["roof_us"] + weights_us), 4),
    }


def now_utc() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def threads() -> int:
    return len(os.sched_getaffinity(0))
