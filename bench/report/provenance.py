"""What a run is called, and where it comes from."""

from __future__ import annotations

from .records import Run
from .shapes import kind_of


def titled(run: Run) -> str:
    state = "" if run.cold else ", warm caches"
    page = f", pages of {run.page_tokens}" if run.page_tokens not in (None, 64) else ""
    if run.values("batch_invariant") == ["True"]:
        state = f", batch-invariant{state}"
    kind = kind_of(run)
    return f"{run.device}, {run.dtype}{page}{state}" + (f": {kind}" if kind else "")


def provenance(run: Run) -> str:
    """Where it comes from: file, date, commit, versions, clock, command."""
    dates = sorted({value[:10] for value in run.values("date")})
    versions: dict[str, str] = {}
    for time in run.times:
        versions.update(time.line.data.get("versions", {}))
        for key, name in (("version", "pando"), ("torch", "torch")):
            if isinstance(time.line.data.get(key), str):
                versions[name] = time.line.data[key]
    load = run.values("load")
    clocks = run.values("sm_clock_mhz") or run.values("clock_mhz")
    facts = [
        f"[{run.file}]({run.file})",
        " to ".join(dict.fromkeys((dates[0], dates[-1]))) if dates else "no date",
        f"commit {', '.join(run.values('commit'))}",
        *(f"driver {x}" for x in run.values("driver")),
        *(f"CUDA runtime {x}" for x in run.values("runtime")),
        *([_range(clocks) + " MHz"] if clocks else []),
        *(f"{x} threads" for x in run.values("threads")),
        *([f"load {_range(load)} in the minute before"] if load else []),
        *(f"{name} {version}" for name, version in sorted(versions.items())),
    ]
    commands = run.values("command")
    told = " and ".join(f"`{c}`" for c in commands) or "Its command is not in the record"
    return "; ".join(facts) + f". {told}."


def _range(numbers: list[str]) -> str:
    values = sorted(map(float, numbers))
    low, high = (f"{value:.0f}" for value in (values[0], values[-1]))
    return low if low == high else f"{low}–{high}"
