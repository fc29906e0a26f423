"""Processes that are the ranks of one group, and do what a test tells them."""

from __future__ import annotations

import datetime
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any

import torch
import torch.distributed as dist

_SECONDS = 120  # for what a test asks for, on a busy machine


class Failed(AssertionError):
    """What a rank has raised: its type's name, its message, its traceback."""

    def __init__(self, rank: int, kind: str, text: str, where: str) -> None:
        super().__init__(f"rank {rank}: {kind}: {text}\n{where}")
        self.kind = kind
        self.text = text


class Ranks:
    """``size`` processes, one group; started once, since importing PyTorch takes seconds."""

    def __init__(
        self, size: int, folder: Any, backend: str = "gloo", seconds: int = _SECONDS
    ) -> None:
        context = torch.multiprocessing.get_context("spawn")
        self._pipes = []
        self.processes = []
        for rank in range(size):
            here, there = context.Pipe()
            task = (rank, size, str(folder), backend, seconds, there)
            process = context.Process(target=_serve, args=task, daemon=True)
            process.start()
            there.close()
            self._pipes.append(here)
            self.processes.append(process)

    def outcomes(self, work: Callable[..., Any], *args: Any) -> list[Any]:
        """What ``work(rank, *args)`` returns on each rank, or a Failed; None of one that ended."""
        for pipe in self._pipes:
            pipe.send((work, args))
        results: list[Any] = []
        for pipe in self._pipes:
            if not wait([pipe], _SECONDS):
                raise AssertionError(f"rank {len(results)} has not answered for {_SECONDS} s")
            try:
                results.append(pipe.recv())
            except EOFError:
                results.append(None)
        return results

    def run(self, work: Callable[..., Any], *args: Any) -> list[Any]:
        """The same; raises when one has failed."""
        results = self.outcomes(work, *args)
        for result in results:
            if isinstance(result, Failed):
                raise result
        return results

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.close()  # a rank that has nothing to read any more ends
        for process in self.processes:
            process.join(2)
            if process.is_alive():
                process.kill()


def _serve(rank: int, size: int, folder: str, backend: str, seconds: int, pipe: Any) -> None:
    torch.set_num_threads(1)
    environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ.update({name: str(value) for name, value in environment.items()})
    if backend == "nccl":
        torch.cuda.set_device(rank)
    dist.init_process_group(
        backend,
        init_method=f"file://{folder}/ranks",
        rank=rank,
        world_size=size,
        timeout=datetime.timedelta(seconds=seconds),
    )
    while True:
        try:
            work, args = pipe.recv()
        except EOFError:
            break
        try:
            result = work(rank, *args)
        except Exception as error:
            where = traceback.format_exc()
            result = Failed(rank, type(error).__name__, str(error), where)
        pipe.send(result)
    os._exit(0)  # a group whose other ranks have ended would wait for them


Failed.__reduce__ = lambda self: (_failed, (self.args, self.kind, self.text))  # type: ignore


def _failed(args: Any, kind: str, text: str) -> Failed:
    failed = Failed(0, kind, text, "")
    failed.args = args
    return failed
