"""The plots, as SVG that is the same bytes each time."""

from __future__ import annotations

import io

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from .records import Planning, Run
from .shapes import AXES, axis_of
from .tables import best_peer

_STYLE = {
    "svg.hashsalt": "pando",
    "svg.fonttype": "none",
    "font.size": 9,
    "font.family": "sans-serif",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": "#e3e7eb",
    "axes.axisbelow": True,
    "legend.frameon": False,
}
_PANDO, _OTHER = "#1f6f50", "#b9c3cc"
#: One colour for each library; what shares nothing is dashed.
_COLOURS = {
    "pando": _PANDO,
    "fa3": "#2f5fa8",
    "fa4": "#1597a5",
    "flashinfer": "#b3261e",
    "torch": "#c77700",
    "hydragen": "#8b3f8f",
    "chunk": "#7a6a2f",
    "roof": "#222222",
    "discover": "#c77700",
    "update": "#2f5fa8",
    "plan": _PANDO,
}
_ALONE = ("pando-unshared", "fa3", "fa4", "flashinfer", "torch-flash", "torch-cudnn")
_plain = FuncFormatter(lambda value, _: f"{value / 1024:g}k" if value >= 8192 else f"{value:g}")


def of_roof(run: Run) -> str:
    """Bars of every shape: part of the roof that Pando reaches, and the best other way."""
    names = [s for s in run.shapes() if "pando" in run.by_who(s) and axis_of(s) is None]
    with plt.rc_context(_STYLE):
        figure, axes = plt.subplots(figsize=(min(11, 2.5 + 0.42 * len(names)), 3.6))
        mine = [run.by_who(name)["pando"].pct_roof for name in names]
        others = [_other(run, name) for name in names]
        word = "best peer" if run.kind == "peers" else "Pando without sharing"
        at = range(len(names))
        axes.bar([x + 0.2 for x in at], others, 0.38, color=_OTHER, label=word)
        axes.bar([x - 0.2 for x in at], mine, 0.38, color=_PANDO, label="Pando")
        axes.set_xticks(list(at), names, rotation=55, ha="right", rotation_mode="anchor")
        axes.set_ylabel("% of the roof")
        axes.set_xlim(-0.7, len(names) - 0.3)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, 1.16), ncols=2)
        return _svg(figure)


def _other(run: Run, name: str) -> float:
    time = best_peer(run, name) or run.by_who(name).get("pando-unshared")
    return time.pct_roof if time else 0


def along_axes(run: Run) -> str | None:
    """Time against sequences, prefix, depth and number of prefixes; None without such shapes."""
    points: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for time in run.times:
        axis = axis_of(time.shape)
        if axis is not None:
            lines = points.setdefault(axis[0], {})
            lines.setdefault(time.who, []).append((axis[1], time.median))
            if time.who == "pando":
                lines.setdefault("roof", []).append((axis[1], time.roof))
    return _panels(points, "µs") if points else None


def planning(times: list[Planning]) -> str | None:
    """Host time of a decode step and of its parts along the same axes."""
    points: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for time in times:
        axis = axis_of(time.shape)
        if time.shape == "l3-64":  # the shape whose page size is varied
            axis = ("page", time.line.data["page_tokens"])
        elif axis is None or time.line.data["page_tokens"] != 64:
            continue
        lines = points.setdefault(axis[0], {})
        for name in ("discover", "update", "plan"):
            lines.setdefault(name, []).append((axis[1], getattr(time, name)))
    return _panels(points, "µs on the host") if points else None


def _panels(points: dict[str, dict[str, list[tuple[int, float]]]], unit: str) -> str:
    names = list(dict.fromkeys(name for lines in points.values() for name in lines))
    with plt.rc_context(_STYLE):
        figure, panels = plt.subplots(1, len(points), figsize=(2.9 * len(points), 3), squeeze=False)
        in_order = sorted(points.items(), key=lambda point: list(AXES).index(point[0]))
        for axes, (axis, lines) in zip(panels[0], in_order):
            for name in names:
                if name not in lines:
                    continue
                x, y = zip(*sorted(lines[name]))
                strong = name in ("pando", "plan")
                style = ":" if name == "roof" else "--" if name in _ALONE else "-"
                axes.plot(
                    x,
                    y,
                    label=name,
                    color=_COLOURS.get(name.partition("-")[0], "#555b62"),
                    linewidth=2.2 if strong else 1.2,
                    linestyle=style,
                    marker="o",
                    markersize=2.5,
                )
            if axis != "depth":
                axes.set_xscale("log", base=2)
                axes.xaxis.set_major_formatter(_plain)
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
            if axes.get_ylim()[1] < 60 * axes.get_ylim()[0]:  # too few powers of 10
                axes.yaxis.set_major_locator(LogLocator(10, (1, 2, 5)))
            axes.set_xlabel(AXES[axis])
        panels[0][0].set_ylabel(unit)
        handles = {h.get_label(): h for row in panels for a in row for h in a.get_lines()}
        figure.legend(handles.values(), handles.keys(), loc="upper center", ncols=6)
        figure.tight_layout(rect=(0, 0, 1, 0.88))
        return _svg(figure)


def _svg(figure) -> str:
    file = io.StringIO()
    figure.savefig(
        file,
        format="svg",
        bbox_inches="tight",
        metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )
    plt.close(figure)
    # Lines of SVG end in blanks that git complains about.
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    return "\n".join(lines) + "\n"
