"""Pando's threads beside those of OpenMP, which vLLM binds to cores."""

from __future__ import annotations

import os

import torch

from .. import _native


def make_threads() -> None:
    """Makes the threads for plans on the CPU, as many as PyTorch has, on the cores of these.

    Each thread of OpenMP is bound to one core, and so is the one that calls this: threads that it
    starts would all stay on its core.
    """
    torch.ones(1 << 20).sum()  # starts those of OpenMP
    cores: set[int] = set()
    for thread in os.listdir("/proc/self/task"):
        try:
            cores |= os.sched_getaffinity(int(thread))
        except ProcessLookupError:
            pass  # it has ended
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        _native.cpu(torch.get_num_threads())
    finally:
        os.sched_setaffinity(0, before)
