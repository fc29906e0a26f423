"""The shapes that everything is measured on, and their page tables."""

from __future__ import annotations

import dataclasses
import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SHAPES_FILE = Path(__file__).parents[1] / "shapes.json"
#: Lists of the file.
LISTS = ("shapes", "trees", "sweep", "scale")
#: Sizes of the list "pages", which is page-1 to page-256: l3-64 in pages of so many tokens.
PAGE_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Shape:
    """Levels of nodes, those of the last being the sequences; each node has so many tokens."""

    name: str
    q_heads: int
    kv_heads: int
    nodes: tuple[int, ...]
    tokens: tuple[int, ...]
    q_len: int = 1
    head_dim: int = 128
    page_tokens: int | None = None  #: the only size to try; none: each peer's own choice

    def fields(self) -> dict[str, Any]:
        """What a record says of it."""
        made = {"shape": self.name, "batch": self.batch, **dataclasses.asdict(self)}
        del made["name"]
        if self.page_tokens is None:
            del made["page_tokens"]
        return made

    @property
    def batch(self) -> int:
        return self.nodes[-1]

    @property
    def group(self) -> int:
        return self.q_heads // self.kv_heads

    @property
    def sequence_tokens(self) -> int:
        return sum(self.tokens)

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each sequence."""
        return np.full(self.batch, self.sequence_tokens)

    @property
    def context_tokens(self) -> int:
        """Of all sequences together."""
        return int(self.lengths.sum())

    @property
    def unique_tokens(self) -> int:
        return sum(n * t for n, t in zip(self.nodes, self.tokens))

    @property
    def levels(self) -> list[int]:
        """Those that have tokens."""
        return [level for level, tokens in enumerate(self.tokens) if tokens]

    @property
    def shares(self) -> bool:
        return any(self.nodes[level] < self.batch for level in self.levels)

    def bytes(self, element_bytes: int) -> int:
        """Every KV byte once, q and the output."""
        io = 2 * self.batch * self.q_len * self.q_heads
        kv = 2 * self.unique_tokens * self.kv_heads
        return (io + kv) * self.head_dim * element_bytes

    def flops(self) -> int:
        """Of the visible pairs: the q_len rows of a sequence are its last tokens."""
        hidden = self.batch * self.q_len * (self.q_len - 1) // 2
        seen = self.q_len * self.context_tokens - hidden
        return 4 * self.q_heads * self.head_dim * seen

    def scaled(self, scale: float) -> Shape:
        """With every level's tokens multiplied by ``scale``, at least 1 where there were any."""
        tokens = tuple(max(1, round(t * scale)) if t else 0 for t in self.tokens)
        return dataclasses.replace(self, tokens=tokens)

    def node_of(self, level: int) -> np.ndarray:
        """The node of each sequence at a level, ``[batch]``."""
        node = np.arange(self.batch)
        for at in range(len(self.nodes) - 1, level, -1):
            node = node * self.nodes[at - 1] // self.nodes[at]
        return node

    def page_tables(self, page_tokens: int, seed: int = 0) -> Pages:
        return page_tables(self, page_tokens, seed)


@functools.cache
def lists() -> dict[str, list[Shape]]:
    """``scale`` has one axis at a time around 64 sequences of 4096 shared and 256 own tokens."""
    file = json.loads(SHAPES_FILE.read_text())
    made = {
        each: [
            Shape(name, q_heads, kv_heads, tuple(nodes), tuple(tokens), head_dim=file["head_dim"])
            for name, q_heads, kv_heads, nodes, tokens in file[each]
        ]
        for each in LISTS
    }
    paged = next(shape for shape in made["shapes"] if shape.name == "l3-64")
    made["pages"] = [
        dataclasses.replace(paged, name=f"page-{size}", page_tokens=size) for size in PAGE_SIZES
    ]
    return made


def chosen(names: str) -> list[Shape]:
    """Of names with commas; those of ``lists()`` stand for whole lists.

    ``name@4`` is the shape with 4 query rows a sequence. Raises ValueError for any other name.
    """
    known = {shape.name: shape for each in lists().values() for shape in each}
    result: list[Shape] = []
    for entry in names.split(","):
        name, _, rows = entry.partition("@")
        if name not in known and name not in lists():
            wanted = ", ".join((*lists(), *(s.name for s in lists()["shapes"] + lists()["trees"])))
            raise ValueError(f'shapes: got "{entry}", want some of {wanted}')
        if rows and (not rows.isdigit() or int(rows) < 1):
            raise ValueError(f'shapes: got "{entry}", want a number of query rows after @')
        for shape in lists().get(name) or [known[name]]:
            if rows:
                shape = dataclasses.replace(shape, name=f"{shape.name}@{rows}", q_len=int(rows))
            result.append(shape)
    return result


@dataclass(frozen=True)
class Pages:
    """Page tables of a batch, and which token each slot of each page holds."""

    table: np.ndarray  #: page ids ``[batch, pages of a sequence]``
    slots: np.ndarray  #: ``[pages, page_tokens]``: index of the token, -1 for none


def page_tables(shape: Shape, page_tokens: int, seed: int = 0) -> Pages:
    """A page belongs to the deepest node with a token in it; the ids are shuffled.

    Tokens are numbered level by level, node by node.
    """
    ends = np.cumsum(shape.tokens)
    tokens = token_indices(shape)
    count = -(-shape.sequence_tokens // page_tokens)
    padded = np.full((shape.batch, count * page_tokens), -1, np.int64)
    padded[:, : shape.sequence_tokens] = tokens
    padded = padded.reshape(shape.batch, count, page_tokens)
    table = np.empty((shape.batch, count), np.int64)
    slots, used = [], 0
    for page in range(count):
        last = min((page + 1) * page_tokens, shape.sequence_tokens) - 1
        level = int(np.searchsorted(ends, last, side="right"))
        nodes, first, node_of = np.unique(
            shape.node_of(level), return_index=True, return_inverse=True
        )
        table[:, page] = used + node_of
        slots.append(padded[first, page])
        used += len(nodes)
    order = np.random.default_rng(seed).permutation(used)
    shuffled = np.empty((used, page_tokens), np.int64)
    shuffled[order] = np.concatenate(slots)
    return Pages(order[table].astype(np.int32), shuffled)


def token_indices(shape: Shape) -> np.ndarray:
    """The tokens of each sequence in order, ``[batch, sequence_tokens]``."""
    parts, offset = [], 0
    for level, (nodes, tokens) in enumerate(zip(shape.nodes, shape.tokens)):
        begin = offset + shape.node_of(level)[:, None] * tokens
        parts.append(begin + np.arange(tokens))
        offset += nodes * tokens
    return np.concatenate(parts, axis=1)
