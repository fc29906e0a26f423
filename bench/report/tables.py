"""Tables and sentences of the report."""

from __future__ import annotations

import json
import math
from pathlib import Path

from .document import Block, Cell, Heading, Table, Text, anchors
from .provenance import titled
from .records import Planning, Records, Run, Time
from .shapes import described, heads, shares

OWN = ("pando", "pando-unshared", "pando-invariant")
CLEAR = 0.02  #: a part of Pando's time by which a peer wins clearly


def us(value: float | None) -> str:
    if value is None:
        return ""
    if value >= 1e4:
        return f"{value / 1e3:.1f} ms"
    if value >= 1e3:
        return f"{value / 1e3:.2f} ms"
    return f"{value:.0f} µs" if value >= 100 else f"{value:.1f} µs"


def times_text(ratio: float) -> str:
    """Rounded down, so that no loss looks like a draw."""
    return f"{math.floor(100 * ratio) / 100:.2f}×"


def best_peer(run: Run, shape: str) -> Time | None:
    peers = [time for who, time in run.by_who(shape).items() if who not in OWN]
    return min(peers, key=lambda time: time.median, default=None)


def ratios(run: Run) -> dict[str, float]:
    """Time of the best peer over Pando's, where there are both."""
    made = {}
    for shape in run.shapes():
        mine, best = run.by_who(shape).get("pando"), best_peer(run, shape)
        if mine and best:
            made[shape] = best.median / mine.median
    return made


def lost_on(by_shape: dict[str, float], by: float = 0.0) -> list[str]:
    """Shapes on which a peer wins, by more than such a part of Pando's time."""
    return [name for name, ratio in by_shape.items() if ratio < 1 - by]


def of_kind(run: Run, by_shape: dict[str, float], sharing: bool) -> list[float]:
    """Ratios of the shapes that share tokens, or of those that share none."""
    return [ratio for name, ratio in by_shape.items() if shares(run, name) == sharing]


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def beside_peers(run: Run) -> list[Block]:
    """One run with peers: every shape, its roof, all times, who wins."""
    others = [w for w in dict.fromkeys(t.who for t in run.times) if w not in OWN]
    own = [w for w in OWN[1:] if any(time.who == w for time in run.times)]
    columns = ["shape", "sequences × tokens", "heads", "roof", "Pando", "of roof", "best peer",
               "ratio", "winner", *own, *others]  # fmt: skip
    rows = []
    for shape in run.shapes():
        times, best = run.by_who(shape), best_peer(run, shape)
        mine = times.get("pando")
        any_time = mine or best
        if any_time is None:
            continue
        ratio = best.median / mine.median if mine and best else None
        lost = ratio is not None and ratio < 1
        rows.append([
            Cell(shape),
            Cell(described(run, shape)),
            Cell(heads(run, shape)),
            Cell(us(any_time.roof)),
            Cell(us(mine.median) if mine else "–", "loss" if lost else ""),
            Cell(f"{mine.pct_roof:.0f} %" if mine and mine.roof else ""),
            Cell(us(best.median) if best else "–"),
            Cell(times_text(ratio) if ratio else "", "loss" if lost else "win" if ratio else ""),
            Cell(_winner(mine, best)),
            *(_own_cell(times.get(who), mine) for who in own),
            *(_peer_cell(times.get(who), best) for who in others),
        ])  # fmt: skip
    return [Text(summary(run)), Table(columns, rows), *_missing(run)]


def _winner(mine: Time | None, best: Time | None) -> str:
    if best is None:
        return "no peer"
    return "Pando" if mine and mine.median <= best.median else best.who


def _own_cell(time: Time | None, mine: Time | None) -> Cell:
    """Red where sharing made it slower."""
    if time is None:
        return Cell("–")
    slower = mine is not None and time.median < mine.median
    return Cell(us(time.median), "loss" if slower and time.who == "pando-unshared" else "")


def _peer_cell(time: Time | None, best: Time | None) -> Cell:
    if time is None:
        return Cell("–")
    return Cell(us(time.median), "best" if best is not None and time.who == best.who else "")


def summary(run: Run) -> str:
    """Geometric means of best peer over Pando, and the losses."""
    all_ratios = ratios(run)
    if not all_ratios:
        return "Nothing was measured beside a peer in this run."
    parts = []
    for sharing, word in ((True, "shared"), (False, "unshared")):
        some = of_kind(run, all_ratios, sharing)
        if some:
            shapes = f"{len(some)} {word} shape{'s' * (len(some) > 1)}"
            parts.append(
                f"{times_text(geometric_mean(some))} the best peer on {shapes}"
                f" (geometric mean; least {times_text(min(some))})"
            )
    losses, clear = lost_on(all_ratios), lost_on(all_ratios, CLEAR)
    told = f"A peer wins on {len(losses)}: {', '.join(losses)}." if losses else "No peer wins."
    if losses:
        told += f" By more than 2 %: {', '.join(clear)}." if clear else " By more than 2 %: none."
    return f"Pando is {', and '.join(parts)}. {told} {predictions(run)}".rstrip()


def in_short(runs: list[Run]) -> list[Block]:
    """A line for each run with peers: ratios, and where a peer wins."""
    columns = ["run", "shared shapes", "unshared shapes", "least", "a peer wins on",
               "by more than 2 % on"]  # fmt: skip
    rows = []
    for run, at in zip(runs, anchors([titled(run) for run in runs])):
        by_shape = ratios(run)
        if not by_shape:
            continue
        losses, clear = lost_on(by_shape), lost_on(by_shape, CLEAR)
        means = []
        for sharing in (True, False):
            some = of_kind(run, by_shape, sharing)
            means.append(f"{times_text(geometric_mean(some))} on {len(some)}" if some else "–")
        day = (run.values("date") or [""])[-1][:10]
        rows.append([
            Cell(f"[{titled(run)}](#{at}), {day}"),
            *map(Cell, means),
            Cell(times_text(min(by_shape.values())), "loss" if losses else ""),
            Cell(_few(losses, 8) or "none", "loss" if losses else ""),
            Cell(_few(clear, 8) or "none", "loss" if clear else ""),
        ])  # fmt: skip
    if not rows:
        return []
    about = "Geometric means of the time of the best peer over Pando's, and the shapes it loses on."
    return [Heading("In short"), Text(about), Table(columns, rows, words=True)]


def clear_losses(folder: Path, runs: list[Run]) -> list[Block]:
    """Each shape on which a peer wins by more than 2 %, with what losses.json says of it."""
    file = folder / "losses.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    rows = []
    for run in runs:
        by_shape = ratios(run)
        for name in lost_on(by_shape, CLEAR):
            why = known.get(name, "")
            rows.append([
                Cell(name),
                Cell(titled(run)),
                Cell(best_peer(run, name).who),
                Cell(times_text(by_shape[name]), "loss"),
                Cell(why or "not explained yet", "" if why else "loss"),
            ])  # fmt: skip
    if not rows:
        return []
    columns = ["shape", "run", "peer", "ratio", "why"]
    return [Heading("Where a peer wins by more than 2 %", 3), Table(columns, rows, words=True)]


def predictions(run: Run) -> str:
    """How many of the plan's predicted times are within 20 % of the measured ones."""
    mine = [time for time in run.times if time.who == "pando" and time.predicted is not None]
    if not mine:
        return ""
    near = sum(abs(time.predicted / time.median - 1) <= 0.2 for time in mine)
    return f"The predicted time of the plan is within 20 % of it on {near} of {len(mine)} shapes."


def _missing(run: Run) -> list[Block]:
    """Why there is no time, once for each peer and reason."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for shape, who, why in run.missing:
        reasons.setdefault((who, why), []).append(shape)
    if not reasons:
        return []
    rows = [
        [Cell(who), Cell(why, "loss" if why.startswith("failed") else ""), Cell(_few(shapes))]
        for (who, why), shapes in reasons.items()
    ]
    return [Table(["no time of", "why", "shapes"], rows, words=True)]


def _few(shapes: list[str], most: int = 4) -> str:
    return ", ".join(shapes) if len(shapes) <= most else f"{shapes[0]} and {len(shapes) - 1} more"


def with_and_without(run: Run) -> list[Block]:
    """One run of `pando bench`."""
    columns = ["shape", "sequences × tokens", "heads", "roof", "Pando", "of roof", "no sharing",
               "ratio"]  # fmt: skip
    predicted = any(time.predicted is not None for time in run.times)
    columns += ["predicted"] if predicted else []
    rows = []
    for shape in run.shapes():
        times = run.by_who(shape)
        mine, other = times["pando"], times.get("pando-unshared")
        ratio = other.median / mine.median if other else None
        lost = ratio is not None and ratio < 1
        rows.append([
            Cell(shape),
            Cell(described(run, shape)),
            Cell(heads(run, shape)),
            Cell(us(mine.roof)),
            Cell(us(mine.median)),
            Cell(f"{mine.pct_roof:.0f} %"),
            Cell(us(other.median) if other else "–"),
            Cell(times_text(ratio) if ratio else "", "loss" if lost else ""),
            *([Cell(us(mine.predicted))] if predicted else []),
        ])  # fmt: skip
    return [*([Text(predictions(run))] if predicted else []), Table(columns, rows)]


def planning(times: list[Planning]) -> list[Block]:
    columns = ["shape", "pages of", "page ids", "discover", "update", "plan", "a decode step"]
    rows = [
        [
            Cell(t.shape),
            Cell(str(t.line.data["page_tokens"])),
            Cell(f"{t.page_ids:,}"),
            *(Cell(us(x)) for x in (t.discover, t.update, t.plan, t.update + t.plan)),
        ]
        for t in times
    ]
    return [Table(columns, rows)]


def _rows_in(run: Run, data: dict) -> int:
    return sum("pando" in run.by_who(row["shape"]) for row in data["rows"])


def start_project(folder: Path, records: Records) -> list[Block]:
    """Its table beside ours, card by card."""
    data = json.loads((folder / "start-project.json").read_text())
    mine: dict[str, Run] = {}  # of each card the run with most of the shapes, the newest of equals
    for run in records.runs:
        if run.device.startswith("NVIDIA") and run.page_tokens in (None, 64) and not run.layers:
            had = _rows_in(mine[run.device], data) if run.device in mine else 1
            if _rows_in(run, data) >= had:
                mine[run.device] = run
    there, *_ = [d for d in mine if d == data["device"]] or [None]
    columns = ["shape", "sequences × tokens", "heads", *data["columns"].values()]
    columns += [f"Pando, {device}" for device in mine]
    if there:
        columns.append("TK over Pando, same card")
    rows = []
    for row in data["rows"]:
        times = {device: run.by_who(row["shape"]).get("pando") for device, run in mine.items()}
        name, any_run = row["shape"], records.runs[0]
        cells = [Cell(name), Cell(described(any_run, name)), Cell(heads(any_run, name))]
        cells += [Cell(us(row.get(key))) for key in data["columns"]]
        cells += [Cell(us(time.median) if time else "–") for time in times.values()]
        if there:
            ratio = row["tk_us"] / times[there].median if "tk_us" in row and times[there] else None
            mark = "" if ratio is None else "loss" if ratio < 1 else "win"
            cells.append(Cell(times_text(ratio) if ratio else "", mark))
        rows.append(cells)
    source = (
        f"Theirs: {data['what']}, on an {data['device']} at {data['sm_clock_mhz']} MHz, driver "
        f"{data['driver']}; {data['provenance']}. Ours is complete attention, of "
        + " and ".join(f"[{run.file}]({run.file})" for run in mine.values())
        + "."
    )
    reports = [[Cell(text) for text in row] for row in data.get("reports", ())]
    told = Table(["kernel", "case", "time"], reports, data.get("reports_about", "") + ":", True)
    return [Heading("The kernels that this project starts from"), Text(source),
            Table(columns, rows), *([told] if reports else [])]  # fmt: skip
