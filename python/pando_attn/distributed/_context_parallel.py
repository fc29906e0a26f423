"""Attention of a process group whose ranks hold parts of the KV."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.distributed as dist

from .. import _arguments as arguments
from .._attend import attend
from .._plan import Plan
from ._agreement import agree, digest_of
from ._batch import RankBatch, WholeBatch
from ._exchange import EXCHANGES, Rows
from ._placement import Placement, place

#: By their codes.
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class _Spec(NamedTuple):
    """What is computed; the same on all ranks."""

    page_tokens: int
    q_heads: int
    kv_heads: int
    head_dim: int
    dtype_code: int
    scale: float | None
    soft_cap: float
    causal: bool
    window: int


class ContextParallel:
    """Attention over KV whose pages lie on the ranks of a process group.

    Every rank calls the same methods in the same order with the same batch. ``q`` is that of all
    sequences on every rank, as it is where the layers around attention are replicated, or where
    their heads have been gathered; every rank gets the whole result, with the same bits.

    Args:
        group: of torch.distributed; the default group when None.
        collective: "all_gather" (one collective: each rank merges all rows) or "all_to_all" (two:
            each rank merges its part of the rows, and the results are gathered). The first has the
            least latency, the second moves less where ranks are many: per rank 2 partials' bytes
            instead of ``ranks - 1``.
        head_parts: into how many parts the heads are cut, so that the collective of one part runs
            while the next one is computed; divides ``kv_heads``.
    """

    def __init__(
        self, group: Any = None, *, collective: str = "all_gather", head_parts: int = 1
    ) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise ValueError("group: got no process group, want torch.distributed initialized")
        self.group = group
        self.rank, self.ranks = dist.get_rank(group), dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("group: got one that this process is not in, want one of its own")
        arguments.choice("collective", collective, dict.fromkeys(EXCHANGES, 0))
        self.collective = collective
        self.head_parts = arguments.integer("head_parts", head_parts)
        if self.head_parts < 1:
            raise ValueError(f"head_parts: got {head_parts}, want 1 or more")
        self._plan: Plan | None = None
        self._batch: RankBatch | None = None
        self._placement: Placement | None = None
        self._spec: _Spec | None = None
        self._of: Rows | None = None
        self._exchanges: list[Any] = []

    def plan(
        self,
        q_indptr: Any,
        kv_len: Any,
        page_indptr: Any,
        page_ids: Any,
        page_tokens: int,
        *,
        q_heads: int,
        kv_heads: int,
        head_dim: int,
        dtype: Any = "bf16",
        scale: float | None = None,
        causal: bool = True,
        window: int = 0,
        soft_cap: float = 0.0,
        visible: Any = None,
        share: str = "auto",
        device: Any = "cpu",
        threads: int = 0,
        placement: Placement | None = None,
    ) -> RankBatch:
        """Places a batch and plans this rank's part of it.

        The arguments are those of :func:`pando_attn.plan` for the whole batch; page ids are names
        that all ranks understand, such as those of one pool of the whole group.

        Args:
            placement: of :func:`place`; made from the batch when absent.

        Returns:
            The batch as this rank sees it. Its ``pages`` says which page of the batch each page of
            this rank's ``k_cache`` and ``v_cache`` holds.

        Raises:
            ValueError that names two ranks and their hashes when ranks disagree on the batch, its
            placement or its shape; ValueError too when another rank refused its arguments;
            otherwise as :func:`pando_attn.plan`. RuntimeError when a rank does not answer within
            the timeout of the group.
        """
        batch = (q_indptr, kv_len, page_indptr, page_ids)

        def make() -> tuple[_Spec, Plan]:
            spec = _Spec(
                arguments.integer("page_tokens", page_tokens),
                arguments.integer("q_heads", q_heads),
                arguments.integer("kv_heads", kv_heads),
                arguments.integer("head_dim", head_dim),
                arguments.dtype_code(dtype),
                None if scale is None else arguments.number("scale", scale),
                arguments.number("soft_cap", soft_cap),
                arguments.flag("causal", causal),
                arguments.integer("window", window),
            )
            return spec, self._rank_plan(spec, share, device, threads)

        return self._make(make, batch, visible, placement, None)

    def _rank_plan(self, spec: _Spec, share: str, device: Any, threads: int) -> Plan:
        """For one part of the heads."""
        parts = self.head_parts
        if parts > 1 and (spec.kv_heads % parts or spec.q_heads % max(spec.kv_heads, 1)):
            raise ValueError(
                f"head_parts: got {parts}, want a divisor of kv_heads, {spec.kv_heads}"
            )
        on = str(device)
        if on == "cuda":
            on = f"cuda:{torch.cuda.current_device()}"
        return Plan(
            page_tokens=spec.page_tokens,
            q_heads=spec.q_heads // parts,
            kv_heads=spec.kv_heads // parts,
            head_dim=spec.head_dim,
            dtype=arguments.DTYPES[spec.dtype_code],
            scale=spec.scale,
            soft_cap=spec.soft_cap,
            causal=False,  # what rows see comes as ranges of what the rank holds
            window=0,
            share=share,
            batch_invariant=False,
            cut_tokens=512,
            device=on,
            threads=threads,
        )

    def update(
        self,
        q_indptr: Any,
        kv_len: Any,
        page_indptr: Any,
        page_ids: Any,
        *,
        visible: Any = None,
        placement: Placement | None = None,
        check: bool = True,
    ) -> RankBatch:
        """Plans for the next step, or for another batch of the same shape of heads.

        Pages of the batch before that are still used stay where they are; new ones go to the rank
        of the page before them where balance allows. When it raises, :meth:`plan` comes next, with
        a ``placement`` for which ``placement`` of this object is the previous one.

        Args:
            check: False leaves out the comparison of the ranks' hashes, and with it the wait for
                the other ranks.

        Returns:
            As :meth:`plan`. Of a new page that this rank holds, K and V are to be written there.
        """
        plan, spec = self._made()[0], self._spec
        assert spec is not None
        known = (spec, plan)
        batch = (q_indptr, kv_len, page_indptr, page_ids)
        return self._make(lambda: known, batch, visible, placement, self._placement, check)

    def _make(
        self,
        make: Callable[[], tuple[_Spec, Plan]],
        batch: tuple[Any, Any, Any, Any],
        visible: Any,
        placement: Placement | None,
        previous: Placement | None,
        check: bool = True,
    ) -> RankBatch:
        self._plan = None  # until all ranks have one
        try:
            spec, plan = make()
            if placement is None:
                placement = place(*batch[1:], spec.page_tokens, self.ranks, previous=previous)
            elif (placement.ranks, placement.page_tokens) != (self.ranks, spec.page_tokens):
                raise ValueError(
                    f"placement: got one of pages of {placement.page_tokens} tokens on "
                    f"{placement.ranks} ranks, want {spec.page_tokens} and {self.ranks}"
                )
            whole = WholeBatch.of(batch, spec.page_tokens, spec.causal, spec.window, visible)
            mine = placement.seen_from(self.rank, whole, placement.owners(whole))
            plan.update(*mine[:4], visible=mine.visible)
            how = (spec, self.collective, self.head_parts, placement.owner)
            digest = digest_of(*how, *whole) if check else 0
        except Exception:
            if check:
                agree(None, self.group)
            raise
        if check:
            agree(digest, self.group)
        self._plan, self._batch, self._placement, self._spec = plan, mine, placement, spec
        of = Rows(
            rows=plan.q_rows,
            heads=plan.q_heads,
            head_dim=plan.head_dim,
            dtype=_DTYPES[plan.dtype_code],
            dtype_code=plan.dtype_code,
            device=torch.device(plan.device),
        )
        if self._of != of:
            kind = EXCHANGES[self.collective]
            self._of = of
            count = self.head_parts if of.rows else 0
            overlaps = count > 1
            self._exchanges = [kind(of, self.group, overlaps) for _ in range(count)]
        return mine

    def _made(self) -> tuple[Plan, RankBatch]:
        if self._plan is None or self._batch is None:
            raise ValueError("plan: got none, want plan() to be called first")
        return self._plan, self._batch

    @property
    def batch(self) -> RankBatch:
        """The batch as this rank sees it."""
        return self._made()[1]

    @property
    def placement(self) -> Placement:
        """Where all pages are."""
        self._made()
        assert self._placement is not None
        return self._placement

    @property
    def rank_plan(self) -> Plan:
        """This rank's part: ``explain()``, ``predicted_us`` and so on; of one part of the heads."""
        return self._made()[0]

    def upload(self, stream: Any = None) -> None:
        """As :meth:`pando_attn.Plan.upload`: in the capture of a CUDA graph, before ``attend``."""
        self._made()[0].upload(stream)

    def attend(
        self,
        q: torch.Tensor,
        k_cache: torch.Tensor,
        v_cache: torch.Tensor,
        *,
        out: torch.Tensor | None = None,
        lse: torch.Tensor | None = None,
        return_lse: bool = False,
        layout: str = "NHD",
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Attention of all rows over the KV of all ranks; on every rank.

        Calls go to the current stream. All of it can be captured in a CUDA graph, after a first
        call outside of one; buffers are those of the last :meth:`plan` or :meth:`update` that
        changed ``q_rows``.

        Args:
            q: ``[q_rows, q_heads, head_dim]``, of all sequences.
            k_cache: this rank's, ``[num_pages, page_tokens, kv_heads, head_dim]``, or with layout
                "HND" ``[num_pages, kv_heads, page_tokens, head_dim]``.
            v_cache: the same.
            out: where the result goes; new when absent.
            lse: where the LSEs go, fp32 ``[q_rows, q_heads]``, contiguous.
            return_lse: make ``lse`` when it is absent.
            layout: "NHD" or "HND", of K and V.

        Returns:
            ``out``, or ``(out, lse)`` with ``return_lse`` or a given ``lse``.

        Raises:
            As :func:`pando_attn.attend`; RuntimeError when a collective fails or runs into the
            timeout of the group.
        """
        plan, _ = self._made()
        heads_at = 1 if layout == "HND" else 2
        if out is None:
            out = torch.empty_like(q)
        if lse is None and return_lse:
            lse = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
        parts = self.head_parts
        for x, name, at in ((q, "q", 1), (k_cache, "k_cache", heads_at)):
            wanted = (plan.q_heads if name == "q" else plan.kv_heads) * parts
            if parts > 1 and (x.ndim <= at or x.shape[at] != wanted):
                raise ValueError(f"{name}: got shape {tuple(x.shape)}, want {wanted} heads")
        by_heads = [
            (
                _part(q, 1, i, parts),
                _part(k_cache, heads_at, i, parts),
                _part(v_cache, heads_at, i, parts),
            )
            for i in range(parts)
        ]
        if plan.q_rows == 0:
            return out if lse is None else (out, lse)
        for tensors, exchange in zip(by_heads, self._exchanges):
            to, to_lse = exchange.targets()
            attend(plan, *tensors, out=to, lse=to_lse, layout=layout)
            exchange.start()
        for i, exchange in enumerate(self._exchanges):
            if parts == 1:
                exchange.finish(out, lse)
                continue
            of_part = None if lse is None else torch.empty_like(exchange.targets()[1])
            exchange.finish(_part(out, 1, i, parts), of_part)
            if lse is not None and of_part is not None:
                _part(lse, 1, i, parts).copy_(of_part)
        return out if lse is None else (out, lse)


def _part(x: torch.Tensor, dim: int, index: int, parts: int) -> torch.Tensor:
    """One of equal parts of a dimension."""
    if parts == 1:
        return x
    size = x.shape[dim] // parts
    return x.narrow(dim, index * size, size)
