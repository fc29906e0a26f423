"""Attention of a process group whose ranks hold parts of the KV."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from .. import _arguments as arguments
from .._attend import attend
from .._plan import Plan
from .._spec import Spec
from ._agreement import agree, digest_of
from ._batch import RankBatch, WholeBatch
from ._exchange import EXCHANGES, Rows, check_result, check_tensor, part_of, scale_of_part
from ._placement import Placement, place
from ._rank_plan import rank_plan

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .._spec import HeadOptions


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
        self._spec: Spec | None = None
        self._of: Rows | None = None
        self._exchanges: list[Any] = []
        self._captured = False  # a graph knows where the buffers of the exchanges are

    def plan(
        self,
        q_indptr: Any,
        kv_len: Any,
        page_indptr: Any,
        page_ids: Any,
        page_tokens: int,
        *,
        visible: Any = None,
        share: str = "auto",
        device: Any = "cpu",
        threads: int = 0,
        placement: Placement | None = None,
        **heads: Unpack[HeadOptions],
    ) -> RankBatch:
        """Places a batch and plans this rank's part of it.

        The arguments are those of :func:`pando_attn.plan` for the whole batch; page ids are names
        that all ranks understand, such as those of one pool of the whole group.

        Args:
            heads: ``q_heads``, ``kv_heads``, ``head_dim``, and where the defaults won't do
                ``dtype``, ``kv_dtype``, ``scale``, ``causal``, ``window`` and ``soft_cap``.
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

        def make() -> tuple[Spec, Plan]:
            spec = Spec.of(page_tokens, **heads)
            self._captured = False  # a graph of the plan before is not replayed any more
            return spec, rank_plan(spec, self.head_parts, share, device, threads)

        return self._make(make, batch, visible, placement, None)

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
        of the page before them where balance allows. When it raises, :meth:`plan` comes next; so
        that pages stay, with ``placement=place(..., previous=cp.placement)``.

        After a capture in a CUDA graph ``q_rows`` stays; the last replay must be past its upload.

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
        make: Callable[[], tuple[Spec, Plan]],
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
            of, exchanges = self._exchanges_of(plan)
            how = (spec, self.collective, self.head_parts, placement.owner)
            digest = digest_of(*how, *whole) if check else 0
        except Exception:
            if check:
                agree(None, self.group)
            raise
        if check:
            agree(digest, self.group)
        self._plan, self._batch, self._placement, self._spec = plan, mine, placement, spec
        self._of, self._exchanges = of, exchanges
        return mine

    def _exchanges_of(self, plan: Plan) -> tuple[Rows, list[Any]]:
        """What brings the partials of a plan together: that of the step before where it fits."""
        of = Rows.of(plan)
        if self._of == of:
            return of, self._exchanges
        if self._captured:
            raise ValueError(
                f"q_indptr: got {of.rows} query rows, want {self._of and self._of.rows} as in the "
                "captured call; another ContextParallel takes them"
            )
        kind, count = EXCHANGES[self.collective], self.head_parts if of.rows else 0
        return of, [kind(of, self.group, count > 1) for _ in range(count)]

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
        """Where all pages are; after an :meth:`update` that has failed, where they were before."""
        if self._placement is None:
            raise ValueError("plan: got none, want plan() to be called first")
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
        k_scale: torch.Tensor | None = None,
        v_scale: torch.Tensor | None = None,
        layout: str = "NHD",
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """Attention of all rows over the KV of all ranks; on every rank.

        Calls go to the current stream. It must be that of :meth:`plan` and :meth:`update`, or wait
        for it and be waited for: these two make the buffers of the collectives, and drop them when
        ``q_rows`` changes. All of it can be captured in a CUDA graph, after a first call outside of
        one; its replays end with the next :meth:`plan`.

        Args:
            q: ``[q_rows, q_heads, head_dim]``, of all sequences.
            k_cache: this rank's, ``[num_pages, page_tokens, kv_heads, head_dim]``, or with layout
                "HND" ``[num_pages, kv_heads, page_tokens, head_dim]``.
            v_cache: the same.
            out: where the result goes; new when absent.
            lse: where the LSEs go, fp32 ``[q_rows, q_heads]``, contiguous.
            return_lse: make ``lse`` when it is absent.
            k_scale, v_scale: of this rank's fp8 K and V: fp32 ``[1]`` or ``[kv_heads]``.
            layout: "NHD" or "HND", of K and V.

        Returns:
            ``out``, or ``(out, lse)`` with ``return_lse`` or a given ``lse``.

        Raises:
            As :func:`pando_attn.attend`; RuntimeError when a collective fails or runs into the
            timeout of the group.
        """
        plan, _ = self._made()
        for name, x in (("q", q), ("k_cache", k_cache), ("v_cache", v_cache)):
            check_tensor(name, x)
        heads_at = 1 if layout == "HND" else 2
        if out is None:
            out = torch.empty_like(q)
        if lse is None and return_lse:
            lse = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
        check_result("out", out, q.shape, q.dtype)
        if lse is not None:
            check_result("lse", lse, q.shape[:-1], torch.float32)
        parts, kv_heads = self.head_parts, plan.kv_heads * self.head_parts
        for x, name, at, wanted in (
            (q, "q", 1, plan.q_heads * parts),
            (k_cache, "k_cache", heads_at, kv_heads),
            (v_cache, "v_cache", heads_at, kv_heads),
        ):
            if parts > 1 and (x.ndim <= at or x.shape[at] != wanted):
                raise ValueError(f"{name}: got shape {tuple(x.shape)}, want {wanted} heads")
        cut = ((q, 1), (k_cache, heads_at), (v_cache, heads_at))
        by_heads = [[part_of(x, at, i, parts) for x, at in cut] for i in range(parts)]
        given = {"k_scale": k_scale, "v_scale": v_scale}
        scales: list[dict[str, Any]] = [
            {name: scale_of_part(name, x, i, parts, kv_heads) for name, x in given.items()}
            for i in range(parts)
        ]
        if plan.q_rows == 0:
            return out if lse is None else (out, lse)
        self._captured |= q.is_cuda and torch.cuda.is_current_stream_capturing()
        for tensors, of_part, exchange in zip(by_heads, scales, self._exchanges):
            to, to_lse = exchange.targets()
            attend(plan, *tensors, out=to, lse=to_lse, layout=layout, **of_part)
            exchange.start()
        for i, exchange in enumerate(self._exchanges):
            if parts == 1:
                exchange.finish(out, lse)
                continue
            part_lse = None if lse is None else torch.empty_like(exchange.targets()[1])
            exchange.finish(part_of(out, 1, i, parts), part_lse)
            if lse is not None and part_lse is not None:
                part_of(lse, 1, i, parts).copy_(part_lse)
        return out if lse is None else (out, lse)
