"""make report: docs/benchmarks/index.md, index.html and plots/ from the records beside them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from . import document, tables
from .document import Block, Heading, Plot, Text
from .provenance import provenance, titled
from .records import BadRecord, Planning, Records, Run, read
from .shapes import axis_of, kind_of

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"
TITLE = "Benchmarks"


def build(folder: Path) -> tuple[list[Block], dict[str, Run | list[Planning]]]:
    """The text, and what each of its plots shows. Raises BadRecord."""
    records = read(folder)
    plots: dict[str, Run | list[Planning]] = {}
    blocks: list[Block] = [Heading(TITLE, 1), Text(_introduction())]
    runs = sorted(records.runs, key=_order)
    beside = [run for run in runs if run.kind == "peers"]
    blocks += tables.in_short(beside) + tables.clear_losses(folder, beside)
    for kind, title in (("peers", "Beside the peers"), ("bench", "With and without sharing")):
        of_kind = [run for run in runs if run.kind == kind]
        if of_kind:
            blocks.append(Heading(title))
        for run in of_kind:
            blocks += _run(run, plots)
    if records.planning:
        blocks += _planning(records.planning, plots)
    if (folder / "start-project.json").exists():
        blocks += tables.start_project(folder, records)
    blocks += _other_files(folder, records)
    return blocks, plots


def _introduction() -> str:
    return (
        "Built by `make report` from the records in this folder; not to be edited. A ratio is the "
        "time of the best other way over Pando's in the same run, so above 1 Pando is faster; red "
        "(🔴) is where it is not. The roof reads every byte of K and V once, q and the output, or "
        "multiplies at the peak; its bandwidth is that of a copy, and reads alone come up to 5 % "
        "faster. Every time is a median of runs whose answer was checked against an fp64 oracle in "
        "the same process; a record of a wrong answer, or of sources with uncommitted changes, "
        "stops the build of this page. How the peers are called, and which configurations are "
        "tried, is in "
        "[bench/peers](../../bench/peers/README.md). The newest runs come first."
    )


def _order(run: Run) -> tuple:
    dates = run.values("date") or [""]
    newest = -int(dates[-1][:10].replace("-", "") or 0)
    gpu = run.device.startswith("NVIDIA")
    return (not gpu, newest, kind_of(run), run.file, not run.cold, run.dtype)


def _run(run: Run, plots: dict[str, Run | list[Planning]]) -> list[Block]:
    title = titled(run)
    blocks: list[Block] = [Heading(title, 3), Text(provenance(run))]
    name = _plot_name(run)
    on_axes = [s for s in run.shapes() if axis_of(s)]
    if len(on_axes) < len(run.shapes()) and any(time.roof for time in run.times):
        plots[f"roof-{name}"] = run
        blocks.append(Plot(f"roof-{name}", f"Part of the roof that is reached, by shape: {title}"))
    if on_axes:
        plots[f"scale-{name}"] = run
        blocks.append(Plot(f"scale-{name}", f"Time along each axis: {title}"))
    table = tables.beside_peers if run.kind == "peers" else tables.with_and_without
    return blocks + table(run)


def _plot_name(run: Run) -> str:
    stem = run.file.removesuffix(".jsonl")
    page = f"-{run.page_tokens}" if run.page_tokens not in (None, 64) else ""
    layers = f"-{run.layers}-layers" if run.layers else ""
    return f"{stem}-{run.dtype}{page}{layers}{'' if run.cold else '-warm'}"


def _planning(times: list[Planning], plots: dict[str, Run | list[Planning]]) -> list[Block]:
    newest = times[-1].line.file
    times = [time for time in times if time.line.file == newest]
    first = times[0].line.data
    plots["planning"] = times
    about = (
        f"Host time on one core of {first['host']}, planning for {first['planned_for']}: finding "
        "the forest anew, updating it after a decode step, and planning. A step in a decode loop "
        "is an update and a plan. Medians of [{0}]({0}), commit {1}, {2}. `{3}`."
    ).format(newest, first["commit"], first["date"][:10], first.get("command", "pando bench"))
    return [
        Heading("Planning"),
        Text(about),
        Plot("planning", "Host time of discover, update and plan along each axis"),
        *tables.planning(times),
    ]


def _other_files(folder: Path, records: Records) -> list[Block]:
    used = {run.file for run in records.runs} | {t.line.file for t in records.planning}
    generated = {"index.md", "index.html", "start-project.json", "losses.json"}
    names = sorted(p.name for p in folder.iterdir() if p.is_file() and p.name not in generated)
    links = [f"[{name}]({name})" for name in names if name not in used]
    if not links:
        return []
    return [Heading("Other records"), Text("Not in a table here: " + ", ".join(links) + ".")]


def draw(plots: dict[str, Run | list[Planning]]) -> dict[str, str]:
    """SVG by name; needs matplotlib."""
    from . import plots as draw_with

    made = {}
    for name, what in plots.items():
        if isinstance(what, list):
            made[name] = draw_with.planning(what)
        elif name.startswith("scale-"):
            made[name] = draw_with.along_axes(what)
        else:
            made[name] = draw_with.of_roof(what)
    return made


def write(folder: Path) -> None:
    blocks, plots = build(folder)
    drawn = draw(plots)
    (folder / "plots").mkdir(exist_ok=True)
    for old in (folder / "plots").glob("*.svg"):
        if old.stem not in drawn:
            old.unlink()
    for name, svg in drawn.items():
        (folder / "plots" / f"{name}.svg").write_text(svg)
    inline = {name: svg[svg.index("<svg") :] for name, svg in drawn.items()}
    (folder / "index.md").write_text(document.markdown(blocks))
    (folder / "index.html").write_text(document.page(blocks, f"Pando: {TITLE.lower()}", inline))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m report", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    folder = parser.parse_args().folder
    try:
        write(folder)
    except BadRecord as error:
        print(f"report: {error}", file=sys.stderr)
        return 1
    print(f"report: {folder / 'index.md'} and {folder / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
