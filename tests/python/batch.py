"""Batches in pages, with the answer that they should give."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import oracle

import pando_attn


@dataclass
class Batch:
    """Sequences that share ``prefix`` pages; sequence b has kv_lens[b] tokens, q_lens[b] rows."""

    kv_lens: list[int]
    q_lens: list[int]
    prefix: int = 0
    page_tokens: int = 16
    q_heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    dtype: str = "fp32"
    layout: str = "NHD"
    seed: int = 0
    options: dict[str, Any] = field(default_factory=dict)
    sinks: np.ndarray | None = None

    def __post_init__(self) -> None:
        rng = np.random.default_rng(self.seed)
        tables, used = [], self.prefix
        for kv_len in self.kv_lens:
            own = max(-(-kv_len // self.page_tokens) - self.prefix, 0)
            tables.append([*range(self.prefix), *range(used, used + own)])
            used += own
        self.num_pages = used + 1
        self.order = rng.permutation(self.num_pages).astype(np.int32)
        self.tables = [self.order[table] for table in tables]
        self.q_indptr = np.cumsum([0, *self.q_lens], dtype=np.int32)
        self.page_indptr = np.cumsum([0, *map(len, tables)], dtype=np.int32)
        self.page_ids = np.concatenate([*self.tables, np.zeros(0, np.int32)]).astype(np.int32)

        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape, np.float32).astype(oracle.NUMPY_DTYPES[self.dtype])

        self.q = normal(self.q_indptr[-1], self.q_heads, self.head_dim)
        self.k = normal(self.num_pages, self.page_tokens, self.kv_heads, self.head_dim)
        self.v = normal(*self.k.shape)

    def plan(self, **options: Any) -> pando_attn.Plan:
        return pando_attn.plan(
            self.q_indptr,
            self.kv_lens,
            self.page_indptr,
            self.page_ids,
            self.page_tokens,
            q_heads=self.q_heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            **{"dtype": self.dtype, **self.options, **options},
        )

    def caches(self) -> tuple[np.ndarray, np.ndarray]:
        """K and V in the layout of the batch."""
        if self.layout == "NHD":
            return self.k, self.v
        return tuple(np.ascontiguousarray(x.transpose(0, 2, 1, 3)) for x in (self.k, self.v))

    def answer(self) -> oracle.Answer:
        answers = []
        window = self.options.get("window", 0)
        for b, (q_len, kv_len) in enumerate(zip(self.q_lens, self.kv_lens)):
            tokens = [
                x[self.tables[b]].reshape(-1, *x.shape[2:])[:kv_len] for x in (self.k, self.v)
            ]
            begin = self.q_indptr[b]
            if "tree_mask" in self.options:
                masks = self.options["tree_mask"][begin : begin + q_len]
                visible = [oracle.tree_positions(mask, q_len, kv_len) for mask in masks]
            elif "visible" in self.options:
                visible = self.options["visible"][begin : begin + q_len]
            elif self.options.get("causal", True):
                visible = oracle.causal(q_len, kv_len, window)
            else:
                visible = [(0, kv_len)] * q_len
            q = self.q[begin : begin + q_len]
            answers.append(
                oracle.rows(
                    q,
                    *tokens,
                    visible,
                    self.options.get("scale"),
                    soft_cap=self.options.get("soft_cap", 0),
                    sinks=self.sinks,
                )
            )
        return oracle.together(answers)
