"""The shared library: loads it, and names its functions."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import tvm_ffi


class OutOfPages(RuntimeError):
    """The KV pool has no page left, even after evicting all that could be."""


tvm_ffi.register_error("NotImplementedError", NotImplementedError)
tvm_ffi.register_error("OSError", OSError)
tvm_ffi.register_error("pando_attn.OutOfPages", OutOfPages)

_library = tvm_ffi.load_module(
    str(Path(__file__).with_name("libpando_attn.so")), keep_module_alive=True
)


def _function(name: str) -> Any:
    return tvm_ffi.get_global_func(f"pando_attn.{name}")


attend = _function("attend")
check_apart = _function("check_apart")
merge_parts = _function("merge_parts")
upload = _function("upload")
quantize_fp8 = _function("quantize_fp8")

forest_segments = _function("forest_segments")
visible_ranges = _function("visible_ranges")

plan_new = _function("plan_new")
plan_make = _function("plan_make")
plan_explain = _function("plan_explain")
plan_json = _function("plan_json")
plan_numbers = _function("plan_numbers")
plan_segments = _function("plan_segments")

pool_new = _function("pool_new")
pool_allocate = _function("pool_allocate")
pool_retain = _function("pool_retain")
pool_release = _function("pool_release")
pool_references = _function("pool_references")
pool_free_pages = _function("pool_free_pages")

tree_new = _function("tree_new")
tree_match = _function("tree_match")
tree_add = _function("tree_add")
tree_fork = _function("tree_fork")
tree_append = _function("tree_append")
tree_release = _function("tree_release")
tree_evict = _function("tree_evict")
tree_length = _function("tree_length")
tree_numbers = _function("tree_numbers")
tree_tables = _function("tree_tables")

version = _function("version")
simd_name = _function("simd_name")
tolerance = _function("tolerance")
variants = _function("variants")
cuda_devices = _function("cuda_devices")
cuda_unavailable = _function("cuda_unavailable")

_cpu_new = _function("cpu_new")
_cpu_renew = _function("cpu_renew")
cpu_threads = _function("cpu_threads")

_cpus: dict[int, Any] = {}
_cpus_lock = threading.Lock()


def cpu(threads: int) -> Any:
    """The pool of so many threads (0: one for each core); all plans share it."""
    with _cpus_lock:
        runner = _cpus.get(threads)
        if runner is None:
            runner = _cpus[threads] = _cpu_new(threads)
        return runner


def _after_fork() -> None:
    # Threads do not survive a fork: without this the first call in a child would wait forever.
    global _cpus_lock
    _cpus_lock = threading.Lock()
    for runner in _cpus.values():
        _cpu_renew(runner)


os.register_at_fork(after_in_child=_after_fork)
