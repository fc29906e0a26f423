"""What is known of a shape by its name, or by what its records say of it."""

from __future__ import annotations

import re

from peers.workloads import Shape, lists

from .records import Run

AXES = {
    "batch": "sequences",
    "prefix": "shared tokens",
    "depth": "shared levels",
    "prefixes": "distinct prefixes",
    "page": "tokens of a page",
}


def shape_of(name: str) -> Shape | None:
    """By the name in a record, which may have query rows or a scale at its end."""
    plain = name.partition("@")[0].partition(" ×1/")[0]
    return next((s for each in lists().values() for s in each if s.name == plain), None)


def axis_of(name: str) -> tuple[str, int] | None:
    """("batch", 64) of "batch-64"; None for shapes that are on no axis."""
    found = re.fullmatch(rf"({'|'.join(AXES)})-(\d+)", name)
    return (found.group(1), int(found.group(2))) if found else None


def described(run: Run, name: str) -> str:
    """ "64 × (4096 + 256)": sequences and their tokens by level, with the nodes of inner levels."""
    shape = shape_of(name)
    if shape is None:
        return _of_trace(run, name)
    if len(shape.levels) > 4:
        return f"{shape.batch} × {shape.sequence_tokens} in {len(shape.levels)} levels"
    parts = [
        f"{tokens}" if nodes in (1, shape.batch) else f"{nodes} × {tokens}"
        for nodes, tokens in zip(shape.nodes, shape.tokens)
        if tokens
    ]
    tokens = f"({' + '.join(parts)})" if len(parts) > 1 else parts[0]
    return f"{shape.batch} × {tokens}"


def _of_trace(run: Run, name: str) -> str:
    data = run.data(name)
    if "context_tokens" not in data:
        return ""
    whole, distinct = data["context_tokens"], data["unique_tokens"]
    mean = f"{data['batch']} × {whole // data['batch']} in the mean, {data['longest']} at most"
    return f"{mean}, {100 * (whole - distinct) / whole:.0f} % shared"


def heads(run: Run, name: str) -> str:
    shape = shape_of(name)
    if shape is not None:
        return f"{shape.q_heads}/{shape.kv_heads}"
    data = run.data(name)
    return f"{data['q_heads']}/{data['kv_heads']}" if "q_heads" in data else ""


def shares(run: Run, name: str) -> bool:
    shape = shape_of(name)
    if shape is not None:
        return shape.shares
    data = run.data(name)
    return data.get("unique_tokens", 0) < data.get("context_tokens", 0)


def kind_of(run: Run) -> str:
    """What sort of shapes a run is of, where it is not the usual one."""
    names = run.shapes()
    if run.layers:
        return f"a decode step of {run.layers} layers"
    if names and all("context_tokens" in run.data(name) for name in names):
        return "steps of real traces"
    if names and all(axis_of(name) for name in names):
        return "one axis at a time"
    rows = {name.partition("@")[2] for name in names}
    if len(rows) == 1 and rows != {""}:
        return f"{rows.pop()} query rows a sequence"
    return ""
