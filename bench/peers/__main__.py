"""Pando beside its peers: PYTHONPATH=build/python:bench python -m peers --help"""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import Any

from . import catalog, records, traces, workloads
from .supervisor import Supervisor, Task


def main() -> int:
    options = arguments().parse_args()
    if options.list:
        for name, peer in catalog.peers().items():
            print(f"{name:<20} {'/'.join(peer.devices):<9} {peer.about}")
        return 0
    try:
        shapes = []
        if options.trace and options.scale != 1:
            raise ValueError("scale: steps of a trace have their real lengths")
        if options.trace:
            shapes = traces.steps(options.trace, options.trace_steps, options.trace_batch)
        if options.shapes or not options.trace:
            shapes += workloads.chosen(options.shapes or "shapes,trees")
        names = catalog.chosen(options.peers, options.device)
    except ValueError as error:
        print(f"peers: {error}", file=sys.stderr)
        return 2
    if options.scale != 1:
        shapes = [shape.scaled(options.scale) for shape in shapes]
    settings = {
        "device": options.device,
        "dtype": options.dtype,
        "reps": options.reps,
        "commit": options.commit or records.commit_of_tree(),
        "command": records.command_text("python -m peers", sys.argv[1:]),
        "deadline": time.time() + options.budget,
        "seconds_a_config": options.config_seconds,
        "hopeless_gb": options.hopeless,
        "layers": options.layers,
    }
    tasks = [
        Task(i, shape, name)
        for i, (shape, name) in enumerate((s, n) for s in shapes for n in names)
    ]
    output = Output(options.out)
    Supervisor(settings, output.write, options.task_seconds).run(tasks)
    return output.close()


class Output:
    """JSON lines to stdout and to a file, each written at once; a word on stderr."""

    def __init__(self, path: str | None) -> None:
        self._file = open(path, "w") if path else None
        self._failed = 0

    def write(self, record: dict[str, Any]) -> None:
        line = json.dumps(record)
        print(line, flush=True)
        if self._file:
            self._file.write(line + "\n")
            self._file.flush()
        self._failed += "failed" in record
        print(_word(record), file=sys.stderr, flush=True)

    def close(self) -> int:
        if self._file:
            self._file.close()
        return 1 if self._failed else 0


def _word(record: dict[str, Any]) -> str:
    name = f"{record['shape']:<16} {record['peer']:<18}"
    for kind in ("skipped", "failed"):
        if kind in record:
            return f"{name} {kind.upper()}: {record[kind]}"
    run = record["run_us"]["median"]
    return f"{name} {run:>11.1f} us {record['pct_roof']:>6.1f} % of roof  {record['config']}"


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m peers", description=__doc__)
    parser.add_argument(
        "--shapes",
        help="names of bench/shapes.json with commas, NAME@ROWS for several query rows a sequence; "
        "or lists: shapes, trees, sweep, scale, pages. shapes,trees by default",
    )
    parser.add_argument("--trace", metavar="FILE", help="steps of a Mooncake trace, too")
    parser.add_argument("--trace-steps", type=int, default=6, metavar="COUNT")
    parser.add_argument("--trace-batch", type=int, default=64, metavar="SEQUENCES")
    parser.add_argument("--peers", help="names with commas; see --list")
    parser.add_argument("--list", action="store_true", help="names the peers, and ends")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--dtype", choices=["bf16", "fp16", "fp32"], default="bf16")
    parser.add_argument("--scale", type=float, default=1, help="of the tokens of every level")
    parser.add_argument("--reps", type=int, default=25, help="runs of the best configuration")
    parser.add_argument("--budget", type=float, default=1e9, metavar="SECONDS", help="for all")
    parser.add_argument(
        "--task-seconds", type=float, default=90, help="after which one peer on one shape is ended"
    )
    parser.add_argument(
        "--config-seconds", type=float, default=1.5, help="for the runs of one configuration"
    )
    parser.add_argument(
        "--hopeless", type=float, default=1e9, metavar="GB",
        help="leave out what shares nothing where it reads more than so much KV again",
    )  # fmt: skip
    parser.add_argument(
        "--layers", type=int, default=0, metavar="COUNT",
        help="time a decode step of so many layers of a Llama-like model with each attention",
    )  # fmt: skip
    parser.add_argument("--out", metavar="FILE", help="where the JSON lines go too")
    parser.add_argument("--commit", help="for records, where there is no git")
    return parser


if __name__ == "__main__":
    sys.exit(main())
