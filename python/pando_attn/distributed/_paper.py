"""What context parallelism would cost on so many ranks, by the cost model and a link's speed."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from .. import _arguments as arguments
from .._plan import Plan
from .._planning import plan
from ._batch import RankBatch, WholeBatch
from ._placement import place

#: q_indptr, kv_len, page_indptr, page_ids
Tables = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

_ELEMENT_BYTES = (4, 2, 2)
_INT32_MAX = np.iinfo(np.int32).max


class Link(NamedTuple):
    """Between ranks."""

    gbps: float  #: gigabits a second that a rank receives while it sends as many
    latency_us: float  #: of one collective of nothing

    def us(self, collectives: int, received_bytes: float) -> float:
        """Of some collectives by which a rank receives so many bytes."""
        return collectives * self.latency_us + received_bytes / (self.gbps * 125)


class Tree(NamedTuple):
    """Nodes and tokens of each level, as of ``pando gen --tree``; the last are the sequences."""

    nodes: tuple[int, ...]
    tokens: tuple[int, ...]

    @staticmethod
    def of(text: str) -> Tree:
        """From "1,64:4096,128"."""
        try:
            nodes, tokens = ([int(x) for x in half.split(",")] for half in text.split(":"))
        except ValueError:
            nodes, tokens = [], []
        grows = all(a > 0 and b % a == 0 for a, b in zip([1, *nodes], nodes))
        if not nodes or len(nodes) != len(tokens) or not grows or min(tokens) < 0:
            raise ValueError(
                f"tree: got {text!r}, want nodes and tokens by level, such as 1,4,16:512,128,32"
            )
        if sum(tokens) > _INT32_MAX:
            raise ValueError(
                f"tree: got {text!r}, {sum(tokens)} tokens of a sequence, want fewer than 2^31"
            )
        return Tree(tuple(nodes), tuple(tokens))

    def tables(self, page_tokens: int, q_len: int = 1) -> Tables:
        """q_indptr, kv_len, page_indptr and page_ids."""
        if page_tokens < 1:
            raise ValueError(f"page_tokens: got {page_tokens}, want a power of two up to 256")
        count = self.nodes[-1]
        if not 1 <= q_len <= _INT32_MAX // count:
            raise ValueError(
                f"q_len: got {q_len}, want 1 or more, and fewer than 2^31 rows of {count} sequences"
            )
        levels, used = [], 0
        for level, (nodes, tokens) in enumerate(zip(self.nodes, self.tokens)):
            if level + 1 < len(self.nodes) and tokens % page_tokens:
                raise ValueError(
                    f"tree: got {tokens} shared tokens, want a multiple of page_tokens, "
                    f"{page_tokens}"
                )
            pages = -(-tokens // page_tokens)
            ids = used + np.arange(nodes * pages, dtype=np.int32).reshape(nodes, pages)
            levels.append(np.repeat(ids, count // nodes, axis=0))
            used += nodes * pages
        table = np.concatenate(levels, axis=1)
        each = np.arange(count + 1, dtype=np.int32)
        return (
            each * q_len,
            np.full(count, sum(self.tokens), np.int32),
            each * table.shape[1],
            table.ravel(),
        )


class Heads(NamedTuple):
    """What is computed, and for which profile it is planned."""

    q_heads: int
    kv_heads: int
    head_dim: int
    dtype: str
    profile: str

    def plan(self, batch: Iterable[Any], visible: Any = None) -> Plan:
        """Of a batch as :func:`pando_attn.plan` takes it."""
        return plan(
            *batch,
            q_heads=self.q_heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            dtype=self.dtype,
            device=self.profile,
            visible=visible,
        )

    @property
    def element_bytes(self) -> int:
        """Of q, K, V and out."""
        return _ELEMENT_BYTES[arguments.dtype_code(self.dtype)]

    def kv_bytes(self, tokens: Any) -> Any:
        """K and V of so many tokens."""
        return tokens * 2 * self.kv_heads * self.head_dim * self.element_bytes

    def partial_bytes(self, rows: int) -> int:
        """Out in the input type and fp32 LSEs of so many rows: what one rank has to tell."""
        return rows * self.q_heads * (self.head_dim * self.element_bytes + 4)

    def bytes_per_us(self) -> float:
        """The bandwidth that the profile plans with, from a batch that it bounds."""
        one = self._replace(q_heads=1, kv_heads=1)
        tokens, page = 1 << 20, 64
        pages = np.arange(tokens // page, dtype=np.int32)
        cost = json.loads(one.plan(([0, 1], [tokens], [0, pages.size], pages, page)).json())["cost"]
        return (cost["kv_bytes"] + cost["io_bytes"]) / cost["roof_us"]


def step_costs(
    tables: Tables, page_tokens: int, ranks: Iterable[int], heads: Heads, link: Link
) -> list[dict[str, Any]]:
    """For each number of ranks: KV bytes of a rank, and predicted times of one step.

    ``attend_us`` is that of the slowest rank by the cost model of the profile, ``collective_us``
    what moves over the link, by the collective that takes less, and ``merge_us`` reading the
    partials and writing the result at the profile's bandwidth. Host time is not in it.
    """
    alone_us = heads.plan((*tables, page_tokens)).predicted_us
    bandwidth = heads.bytes_per_us()
    whole = WholeBatch.of(tables, page_tokens, True, 0, None)
    rows = len(whole.sequences)
    partial = heads.partial_bytes(rows)
    costs = []
    for count in ranks:
        placement = place(tables[1], tables[2], tables[3], page_tokens, count)
        owners = placement.owners(whole)
        attend_us: dict[bytes, float] = {}
        for rank in range(count):
            mine = placement.seen_from(rank, whole, owners)
            key = _key(mine)
            if key not in attend_us:
                attend_us[key] = heads.plan(mine[:5], mine.visible).predicted_us
        choices = {
            "all_gather": (link.us(1, (count - 1) * partial), (count + 1) * partial / bandwidth),
            "all_to_all": (
                link.us(2, 2 * (count - 1) * partial / count),
                (count + 1) * partial / count / bandwidth,
            ),
        }
        if count == 1:
            choices = {"none": (0.0, 0.0)}
        chosen = min(choices, key=lambda name: sum(choices[name]))
        collective_us, merge_us = choices[chosen]
        slowest = max(attend_us.values())
        step_us = slowest + collective_us + merge_us
        kv = heads.kv_bytes(placement.tokens)
        costs.append(
            {
                "ranks": count,
                "kv_bytes_min": int(kv.min()),
                "kv_bytes_mean": float(kv.mean()),
                "kv_bytes_max": int(kv.max()),
                "attend_us": slowest,
                "collective": chosen,
                "collective_us": collective_us,
                "merge_us": merge_us,
                "step_us": step_us,
                "one_rank_us": alone_us,
                "speed_up": alone_us / step_us,
                "link_gbps": link.gbps,
                "latency_us": link.latency_us,
                "profile": heads.profile,
            }
        )
    return costs


def _key(batch: RankBatch) -> bytes:
    """Equal for ranks whose plans are equal."""
    return b"".join(array.tobytes() + b";" for array in (*batch[1:4], batch.visible))
