"""Runs the tasks in a worker process, and in a fresh one after a crash."""

from __future__ import annotations

import dataclasses
import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from .workloads import Shape

Record = dict[str, Any]


@dataclasses.dataclass
class Task:
    id: int
    shape: Shape
    peer: str


class Supervisor:
    """Of ``tasks``: every one of them becomes a record."""

    def __init__(
        self,
        settings: Record,
        emit: Callable[[Record], None],
        seconds_a_task: float,
        worker: tuple[str, ...] = (sys.executable, "-m", "peers.worker"),
    ) -> None:
        self._settings, self._emit = settings, emit
        self._seconds_a_task, self._worker = seconds_a_task, worker

    def run(self, tasks: list[Task]) -> None:
        while tasks:
            tasks = self._run_worker(tasks)

    def _run_worker(self, tasks: list[Task]) -> list[Task]:
        """Until the worker ends; returns the tasks that are left."""
        process = subprocess.Popen(
            self._worker, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        events: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=_read, args=(process.stdout, events), daemon=True)
        reader.start()
        job = {"settings": self._settings, "tasks": [dataclasses.asdict(task) for task in tasks]}
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.close()
        except BrokenPipeError:
            pass  # it ended already; the exit code says more
        left = {task.id: task for task in tasks}
        current = tasks[0].id
        why = ""
        while True:
            try:
                line = events.get(timeout=self._seconds_a_task)
            except queue.Empty:
                why = f"still running after {self._seconds_a_task:g} s"
                process.kill()
                break
            if line is None:
                break
            event = json.loads(line)
            if "start" in event:
                current = event["start"]
            else:
                self._emit(event["record"])
                left.pop(current, None)
        code = process.wait()
        reader.join(timeout=5)
        # A worker that stops after a record left the device broken, and has said so in the record.
        if current in left and (code != 0 or why):
            task = left.pop(current)
            self._emit(self._crash(task, why or _exit_text(code)))
        elif code == 0:
            for task in left.values():
                self._emit(self._crash(task, "the worker ended without a record"))
            left = {}
        return list(left.values())

    def _crash(self, task: Task, why: str) -> Record:
        return {
            **task.shape.fields(),
            "dtype": self._settings["dtype"],
            "peer": task.peer,
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "commit": self._settings["commit"],
            "command": self._settings["command"],
            "failed": f"crashed: {why}",
        }


def _exit_text(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"


def _read(stream: Any, events: queue.Queue[str | None]) -> None:
    for line in stream:
        events.put(line)
    events.put(None)
