"""Reads records and refuses those that prove nothing."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

Record = dict[str, Any]


class BadRecord(ValueError):
    """A line that the report must not be built from; the text says where and why."""


@dataclasses.dataclass(frozen=True)
class Line:
    file: str
    number: int
    data: Record

    def refuse(self, why: str) -> BadRecord:
        return BadRecord(f"{self.file}:{self.number}: {why}")

    def get(self, *path: str) -> Any:
        value: Any = self.data
        for key in path:
            if not isinstance(value, dict) or key not in value:
                raise self.refuse(f"has no {'.'.join(path)}")
            value = value[key]
        return value

    def number_of(self, *path: str) -> float:
        value = self.get(*path)
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise self.refuse(f"{'.'.join(path)}: got {value!r}, want a number")
        return float(value)


@dataclasses.dataclass(frozen=True)
class Time:
    """One measured time of one case, in µs."""

    line: Line
    shape: str
    who: str
    median: float
    roof: float | None
    predicted: float | None = None  #: by the cost model of the plan

    @property
    def pct_roof(self) -> float | None:
        return None if self.roof is None else 100 * self.roof / self.median


@dataclasses.dataclass
class Run:
    """What one file holds of one device, dtype, page size and state of the caches."""

    file: str
    kind: str  #: "peers" or "bench"
    device: str
    dtype: str
    cold: bool
    page_tokens: int | None  #: None: each peer's best
    layers: int = 0  #: of a model whose step is timed; 0: attention alone
    times: list[Time] = dataclasses.field(default_factory=list)
    #: (shape, who, why there is no time)
    missing: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)

    def shapes(self) -> list[str]:
        names = [time.shape for time in self.times]
        return list(dict.fromkeys(names + [shape for shape, _, _ in self.missing]))

    def by_who(self, shape: str) -> dict[str, Time]:
        return {time.who: time for time in self.times if time.shape == shape}

    def data(self, shape: str) -> Record:
        """What its records say of a shape: that of the first time."""
        return next((time.line.data for time in self.times if time.shape == shape), {})

    def values(self, key: str) -> list[str]:
        """The different values of a field, as text."""
        seen = {str(time.line.data[key]) for time in self.times if key in time.line.data}
        return sorted(seen)


@dataclasses.dataclass(frozen=True)
class Planning:
    """Host times of one case, in µs."""

    line: Line
    shape: str
    planned_for: str
    page_ids: int
    discover: float
    update: float
    plan: float


@dataclasses.dataclass
class Records:
    runs: list[Run]
    planning: list[Planning]
    others: list[str]  #: files with lines of other kinds


def read(folder: Path) -> Records:
    """All ``*.jsonl`` of a folder, newest last. Raises BadRecord."""
    runs: dict[tuple, Run] = {}
    planning: list[Planning] = []
    others: list[str] = []
    for path in sorted(folder.glob("*.jsonl"), key=lambda path: (_date(path.name), path.name)):
        # What has no time has no device either: it goes to the run that the other lines make.
        for line in sorted(_lines(path), key=lambda line: "device" not in line.data):
            if "planned_for" in line.data:
                planning.append(_planning(line))
            elif "peer" in line.data:
                _add_peer(runs, line)
            elif {"run_us", "shape"} <= line.data.keys():
                _add_bench(runs, line)
            elif path.name not in others:
                others.append(path.name)
    return Records(list(runs.values()), planning, others)


def _date(name: str) -> str:
    found = re.search(r"\d{4}-\d{2}-\d{2}", name)
    return found.group() if found else ""


def _lines(path: Path) -> Iterator[Line]:
    for number, text in enumerate(path.read_text().splitlines(), 1):
        try:
            data = json.loads(text)
        except ValueError:
            raise BadRecord(f"{path.name}:{number}: is no JSON") from None
        if not isinstance(data, dict):
            raise BadRecord(f"{path.name}:{number}: got {type(data).__name__}, want an object")
        yield Line(path.name, number, data)


def _dtype(data: dict) -> str:
    """That of q, and of K and V where they have another: "bf16", "bf16+fp8"."""
    dtype = data.get("dtype", "bf16")
    kv_dtype = data.get("kv_dtype", dtype)
    return dtype if kv_dtype == dtype else f"{dtype}+{kv_dtype}"


def _run_of(runs: dict[tuple, Run], line: Line, kind: str) -> Run:
    page = line.data.get("page_tokens") if kind == "bench" else None
    dtype, cold = _dtype(line.data), line.data.get("cold", True)
    layers = line.data.get("layers", 0)
    if kind == "peers" and "device" not in line.data:
        for run in runs.values():
            if (run.file, run.kind, run.dtype) == (line.file, kind, dtype):
                return run
    device = line.data.get("device", "")
    key = (line.file, kind, device, dtype, cold, page, layers)
    run = Run(line.file, kind, device, dtype, cold, page, layers)
    return runs.setdefault(key, run)


def _check(line: Line) -> None:
    """Times of wrong answers, of no runs or of unknown sources are refused."""
    for error, allowed in (("max_err", "tolerance"), ("max_err_lse", "tolerance_lse")):
        if error == "max_err" or error in line.data:
            if not line.number_of(error) <= line.number_of(allowed):
                got, want = line.data[error], line.data[allowed]
                raise line.refuse(f"{error}: got {got:.3g}, want at most {want:.3g}")
    if line.data.get("correct", True) is not True:
        raise line.refuse("correct: got false")
    if line.number_of("run_us", "median") <= 0 or line.number_of("run_us", "count") < 1:
        raise line.refuse("run_us: got no runs")
    commit = line.get("commit")
    if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{7,40}", commit):
        raise line.refuse(f"commit: got {commit!r}, want that of sources without changes")


def _add_peer(runs: dict[tuple, Run], line: Line) -> None:
    run = _run_of(runs, line, "peers")
    shape, who = line.get("shape"), line.get("peer")
    for kind in ("skipped", "failed"):
        if kind in line.data:
            run.missing.append((shape, who, f"{kind}: {line.data[kind]}"))
            return
    _check(line)
    median, roof = line.number_of("run_us", "median"), line.number_of("roof_us")
    run.times.append(Time(line, shape, who, median, roof, _predicted(line)))


def _add_bench(runs: dict[tuple, Run], line: Line) -> None:
    _check(line)
    run = _run_of(runs, line, "bench")
    shape, roof = _scaled_name(line), line.number_of("roof_us")
    median = line.number_of("run_us", "median")
    run.times.append(Time(line, shape, "pando", median, roof, _predicted(line)))
    if "unshared_us" in line.data:
        median = line.number_of("unshared_us", "median")
        run.times.append(Time(line, shape, "pando-unshared", median, roof))


def _predicted(line: Line) -> float | None:
    return line.number_of("predicted_us") if "predicted_us" in line.data else None


def _scaled_name(line: Line) -> str:
    scale = line.data.get("scale", 1)
    return line.get("shape") if scale == 1 else f"{line.get('shape')} ×1/{round(1 / scale)}"


def _planning(line: Line) -> Planning:
    return Planning(
        line,
        line.get("shape"),
        line.get("planned_for"),
        int(line.number_of("page_ids")),
        *(line.number_of(f"{key}_us", "median") for key in ("discover", "update", "plan")),
    )
