"""Measures tasks in this process, one JSON line each; the supervisor reads them.

A task that fails is a record that says so. An error that a GPU does not recover from ends the
process, and the supervisor goes on with a fresh one.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch

from . import catalog, records
from .decoder import Decoder
from .oracle import Answer, WrongAnswer, answer
from .peer import Config, Peer, Skip
from .problem import Problem, TooLarge
from .timing import Timer, Timing
from .traces import TraceStep
from .workloads import Shape

Record = dict[str, Any]
_BROKEN_DEVICE = 3  #: exit code
_SEARCH_RUNS = 5


@dataclasses.dataclass
class Settings:
    """What all tasks have in common."""

    device: str
    dtype: str
    reps: int
    commit: str
    command: str
    deadline: float  #: of time.time()
    seconds_a_config: float
    hopeless_gb: float = math.inf  #: of KV read again, over which no sharing is left out
    layers: int = 0  #: of a model around the attention; 0: attention alone

    def left(self) -> float:
        return self.deadline - time.time()


class Worker:
    def __init__(self, settings: Settings, emit: Callable[[Record], None]) -> None:
        self._settings, self._emit = settings, emit
        self._peers = catalog.peers()
        self._timer: Timer | None = None
        self._problem: Problem | None = None
        self._clones: list[Problem] = []
        self._answer: Answer | None = None
        self._decoder: Decoder | None = None

    def run(self, shape: Shape, peer_name: str) -> None:
        """One record: of a time, or of why there is none."""
        peer = self._peers[peer_name]
        base = {
            **records.shape_fields(shape, self._settings.dtype),
            "peer": peer.name,
            "date": records.now_utc(),
            "commit": self._settings.commit,
            "command": self._settings.command,
        }
        self._emit({**base, **self._verdict(shape, peer)})

    def _verdict(self, shape: Shape, peer: Peer) -> Record:
        if self._settings.left() <= 0:
            return {"skipped": "the time budget was spent before its turn"}
        try:
            if self._settings.device not in peer.devices:
                raise Skip(f"does not run on {self._settings.device}")
            self._refuse_hopeless(shape, peer)
            problem = self._problem_of(shape)
            peer.check(problem)
            return self._measure(peer, problem)
        except (Skip, TooLarge) as reason:
            return {"skipped": str(reason)}
        except WrongAnswer as error:
            return {"failed": f"wrong answer: {error}"}
        except Exception as error:
            traceback.print_exc()
            return {"failed": failure(error)}

    def _refuse_hopeless(self, shape: Shape, peer: Peer) -> None:
        element = records.ELEMENT_BYTES[self._settings.dtype]
        token_gb = 2 * shape.kv_heads * shape.head_dim * element / 1e9
        whole, distinct = (
            token_gb * tokens for tokens in (shape.context_tokens, shape.unique_tokens)
        )
        if not peer.shares and whole - distinct > self._settings.hopeless_gb:
            sizes = f"{whole:.2g} GB of which {distinct:.2g} are distinct"
            raise Skip(f"left out: shares nothing, so reads {sizes}")

    def _problem_of(self, shape: Shape) -> Problem:
        settings = self._settings
        if self._timer is None:
            self._timer = Timer(settings.device)
        if self._problem is None or self._problem.shape != shape:
            self._problem = self._answer = self._decoder = None
            self._clones = []
            self._free()
            self._problem = Problem(shape, settings.dtype, settings.device)
            self._answer = answer(self._problem)
            if settings.layers:
                self._decoder = Decoder(shape, settings.dtype, settings.device, settings.layers)
        return self._problem

    def _measure(self, peer: Peer, problem: Problem) -> Record:
        """Tries the configurations with few runs, and times the best right one."""
        tried: list[Record] = []
        best: tuple[float, Config] | None = None
        configs = peer.configs(problem)
        if len(configs) == 1:
            best, configs = (0.0, configs[0]), []
        for config in configs:
            if best is not None and self._settings.left() <= 0:
                tried.append({**config, "skipped": "the time budget was spent"})
                continue
            try:
                prepared, check, _ = self._prepare(peer, problem, config)
                us = self._timer.run(prepared, _SEARCH_RUNS, self._settings.seconds_a_config).median
                check()
            except Exception as error:
                if broken_device(error):
                    raise
                tried.append({**config, "failed": failure(error)})
                last_error = error
                continue
            finally:
                prepared = check = None
                self._make_room()
            tried.append({**config, "us": round(us, 3)})
            if best is None or us < best[0]:
                best = (us, config)
        if best is None:
            raise last_error
        prepared, check, planned = self._prepare(peer, problem, best[1])
        error = check()
        timing = self._timer.run(prepared, self._settings.reps, 4 * self._settings.seconds_a_config)
        error = max(error, check())  # the last of the timed runs has overwritten it
        return self._record(peer, problem, best[1], tried, timing, error, planned)

    def _prepare(
        self, peer: Peer, problem: Problem, config: Config
    ) -> tuple[list[Callable[[], object]], Callable[[], float], dict[str, float]]:
        """(what to time in turn, the error of what it wrote last, what planning says)."""
        copies = self._timer.copies(peer.kv_bytes(problem))
        while len(self._clones) < copies - 1:
            self._clones.append(problem.clone())
        out: list[torch.Tensor] = []

        def keeping(call: Callable[[], torch.Tensor]) -> Callable[[], None]:
            def keep() -> None:
                out[:] = [call()]

            return keep

        def timed(each: Problem) -> Callable[[], torch.Tensor]:
            call = peer.prepare(each, config)
            return self._decoder.step(each, call) if self._decoder else call

        prepared = [
            self._timer.prepare(keeping(timed(each)))
            for each in (problem, *self._clones[: copies - 1])
        ]
        whole = self._answer

        def check() -> float:
            wanted = answer(problem) if self._decoder else whole  # layers have other queries
            return wanted.error(out[0], peer.rounds_levels)

        return prepared, check, peer.planned()

    def _record(
        self,
        peer: Peer,
        problem: Problem,
        config: Config,
        tried: list[Record],
        timing: Timing,
        error: float,
        planned: dict[str, float],
    ) -> Record:
        shape, settings = problem.shape, self._settings
        roof = records.roof_fields(shape, settings.dtype, settings.device)
        if self._decoder:
            roof |= records.layers_fields(roof, self._decoder)
            planned = {key: x for key, x in planned.items() if key != "predicted_us"}
        return {
            **records.device_fields(settings.device),
            **records.clock_fields(settings.device),
            "cold": True,
            "versions": peer.versions(),
            "config": config,
            "tried": tried,
            **{key: round(value, 3) for key, value in planned.items()},
            "run_us": {k: round(v, 3) for k, v in dataclasses.asdict(timing).items()},
            **roof,
            "pct_roof": round(100 * roof["roof_us"] / timing.median, 2),
            "max_err": error,
            "tolerance": self._answer.limit(peer.rounds_levels),
        }

    def _free(self) -> None:
        gc.collect()
        if self._settings.device == "cuda":
            torch.cuda.empty_cache()

    def _make_room(self) -> None:
        """Both take a while, so only where memory could run short."""
        if self._settings.device == "cuda":
            free, total = torch.cuda.mem_get_info()
            if free < 0.5 * total:
                self._free()


def failure(error: Exception) -> str:
    if isinstance(error, WrongAnswer):
        return f"wrong answer: {error}"
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def broken_device(error: Exception) -> bool:
    """Whether the CUDA context is lost: each later call would fail as well."""
    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return "illegal memory access" in str(error)


def main() -> None:
    """Settings and tasks come as one JSON line on stdin; lines on stdout are events."""
    job = json.loads(sys.stdin.readline())
    # What peers print, from C++ too, is no event.
    events = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def send(event: Record) -> None:
        print(json.dumps(event), file=events, flush=True)

    settings = Settings(**job["settings"])
    torch.set_grad_enabled(False)
    torch.set_num_threads(records.threads())
    worker = Worker(settings, lambda record: send({"record": record}))
    for task in job["tasks"]:
        send({"start": task["id"]})
        worker.run(shape_of(task["shape"]), task["peer"])
        if settings.device == "cuda" and broken_device(Exception()):
            sys.exit(_BROKEN_DEVICE)


def shape_of(fields: Record) -> Shape:
    lists = {key: tuple(fields[key]) for key in ("nodes", "tokens")}
    return (TraceStep if "trace" in fields else Shape)(**{**fields, **lists})


if __name__ == "__main__":
    main()
