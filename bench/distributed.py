#!/usr/bin/env python3
"""Attention past one GPU: context parallelism and heads split over ranks, against one rank.

    PYTHONPATH=build/python torchrun --standalone --nproc-per-node 2 bench/distributed.py --out FILE

Prints JSON lines, from rank 0. `link`: an all-gather of much and one of next to nothing. `context`:
`ContextParallel` on all ranks (`step_us`), its parts alone (`attend_us`, `collective_us`), and the
whole batch on one rank (`one_rank_us`). `tensor`: the heads split over the ranks, against that.
Each time is the median of replays of a CUDA graph with a cold L2, of the slowest rank; that on one
rank is of the fastest. All ranks check some rows against fp64; a wrong answer is no record, and the
run ends with 1. On the CPU (`--device cpu`, gloo) it only shows that all is there.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from peers import records
from peers.oracle import Answer, WrongAnswer, answer
from peers.problem import Problem
from peers.timing import Timer, summary
from peers.workloads import Shape

import pando_attn
from pando_attn.distributed import ContextParallel
from pando_attn.distributed._paper import Tree

_MUCH_BYTES, _LITTLE_BYTES = 256 << 20, 1 << 10


class Bench:
    """One batch on this rank, and how to time and check calls on it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.rank, self.ranks = dist.get_rank(), dist.get_world_size()
        self.device = options.device
        self.on = f"cuda:{torch.cuda.current_device()}" if self.device == "cuda" else "cpu"
        tree = Tree.of(options.tree)
        self.shape = Shape(
            options.tree,
            options.q_heads,
            options.kv_heads,
            tree.nodes,
            tree.tokens,
            options.q_len,
            options.head_dim,
        )
        self._timer = Timer(self.device)
        # A group whose collectives are in a graph runs no others.
        self._beside = dist.new_group()
        self._start = torch.zeros(1, device=self.on)
        self.problem: Any = None
        self.answer: Any = None

    def make(self) -> None:
        """The numbers, the same on all ranks, and what attention of them should give."""
        self.problem = Problem(self.shape, self.options.dtype, self.device)
        self.answer = answer(self.problem)

    def median_us(self, call: Callable[[], object]) -> float:
        """Of this rank; all ranks begin together."""
        replay = self._timer.prepare(call)
        us = [self._timer.one(replay, self._begin_together) for _ in range(self.options.reps)]
        return summary(us).median

    def _begin_together(self) -> None:
        dist.all_reduce(self._start, group=self._beside)

    def of_ranks(self, value: Any) -> list[Any]:
        """What each rank has."""
        values: list[Any] = [None] * self.ranks
        dist.all_gather_object(values, value, group=self._beside)
        return values

    def slowest_us(self, call: Callable[[], object]) -> float:
        return max(self.of_ranks(self.median_us(call)))

    def error(self, out: torch.Tensor, heads: slice, *, rounds_parts: bool) -> float:
        """The largest of all ranks; raises WrongAnswer on all of them. A rank's part that is
        rounded before the merge is what a level's is in the harness of the peers."""
        whole: Answer = self.answer
        of_heads = Answer(
            whole.sequences, whole.out[:, :, heads], whole.allowed, whole.allowed_levels
        )
        try:
            verdict: Any = of_heads.error(out, rounds_parts)
        except WrongAnswer as wrong:
            verdict = f"rank {self.rank}: {wrong}"
        verdicts = self.of_ranks(verdict)
        for each in verdicts:
            if isinstance(each, str):
                raise WrongAnswer(each)
        return max(verdicts)

    def arguments(self, parts: int = 1) -> dict[str, Any]:
        """Of a plan for a part of the heads."""
        shape = self.shape
        heads = {"q_heads": shape.q_heads // parts, "kv_heads": shape.kv_heads // parts}
        of_all = {"head_dim": shape.head_dim, "dtype": self.options.dtype, "device": self.on}
        return {**heads, **of_all}


def tables(bench: Bench) -> tuple[Any, Any]:
    """Page tables and the pages of the whole batch."""
    paged = bench.problem.paged(bench.options.page_tokens)
    batch = (bench.problem.q_indptr, bench.problem.kv_len, paged.indptr, paged.table.reshape(-1))
    return (*batch, paged.page_tokens), paged


def attending(plan: pando_attn.Plan, *tensors: torch.Tensor) -> tuple[Callable[[], object], Any]:
    """A call that can be captured, and where its result goes."""
    out = torch.empty_like(tensors[0])
    lse = torch.empty(out.shape[:-1], dtype=torch.float32, device=out.device)
    pando_attn.attend(plan, *tensors, out=out)  # uploads the plan
    return lambda: pando_attn.attend(plan, *tensors, out=out, lse=lse), out


def one_rank(bench: Bench) -> float:
    """The whole batch on each rank by itself: the fastest of them."""
    batch, paged = tables(bench)
    plan = pando_attn.plan(*batch, **bench.arguments())
    call, out = attending(plan, bench.problem.q, paged.k, paged.v)
    us = min(bench.of_ranks(bench.median_us(call)))
    bench.error(out, slice(None), rounds_parts=False)
    return us


def gathering(bench: Bench, size: int) -> Callable[[], object]:
    """An all-gather of so many bytes of each rank, in place."""
    room = torch.zeros((bench.ranks, size), dtype=torch.uint8, device=bench.on)
    return lambda: dist.all_gather_into_tensor(room, room.narrow(0, bench.rank, 1))


def link(bench: Bench) -> Iterator[dict[str, Any]]:
    size = _MUCH_BYTES // (1 if bench.device == "cuda" else 64)
    much_us = bench.slowest_us(gathering(bench, size))
    little_us = bench.slowest_us(gathering(bench, _LITTLE_BYTES))
    yield {
        "bytes_of_a_rank": size,
        "all_gather_us": much_us,
        "link_gbps": (bench.ranks - 1) * size / much_us / 125,
        "latency_us": little_us,
    }


def context(bench: Bench) -> Iterator[dict[str, Any]]:
    one_us = one_rank(bench)
    for collective in bench.options.collectives.split(","):
        for head_parts in map(int, bench.options.head_parts.split(",")):
            yield {"one_rank_us": one_us, **step(bench, collective, head_parts, one_us)}


def step(bench: Bench, collective: str, head_parts: int, one_us: float) -> dict[str, Any]:
    batch, paged = tables(bench)
    q = bench.problem.q
    cp = ContextParallel(collective=collective, head_parts=head_parts)
    mine = cp.plan(*batch, **bench.arguments())
    k, v = (x[torch.from_numpy(mine.pages).to(x.device)] for x in (paged.k, paged.v))
    out = torch.empty_like(q)
    cp.attend(q, k, v, out=out)  # uploads the plan
    step_us = bench.slowest_us(lambda: cp.attend(q, k, v, out=out))
    error = bench.error(out, slice(None), rounds_parts=True)
    of_heads = [x[..., : x.shape[-2] // head_parts, :] for x in (q, k, v)]
    attend_us = head_parts * bench.slowest_us(attending(cp.rank_plan, *of_heads)[0])
    partial = q.shape[0] * q.shape[1] * (q.shape[2] * q.element_size() + 4)
    return {
        "collective": collective,
        "head_parts": head_parts,
        "kv_tokens_of_ranks": cp.placement.tokens.tolist(),
        "step_us": step_us,
        "attend_us": attend_us,
        "predicted_attend_us": max(bench.of_ranks(head_parts * cp.rank_plan.predicted_us)),
        "partial_bytes": partial,
        "collective_us": bench.slowest_us(gathering(bench, partial)),
        "speed_up": one_us / step_us,
        "max_err": error,
        "tolerance": bench.answer.limit(True),
    }


def tensor(bench: Bench) -> Iterator[dict[str, Any]]:
    """Heads split over ranks: every rank has its kv heads of all tokens, and their q heads."""
    shape, parts = bench.shape, bench.ranks
    if shape.kv_heads % parts:
        raise SystemExit(f"kv-heads: got {shape.kv_heads} on {parts} ranks, want a multiple")
    one_us = one_rank(bench)
    batch, paged = tables(bench)
    of_rank = [
        slice(bench.rank * heads // parts, (bench.rank + 1) * heads // parts)
        for heads in (shape.q_heads, shape.kv_heads)
    ]
    plan = pando_attn.plan(*batch, **bench.arguments(parts))
    q = bench.problem.q[:, of_rank[0]].contiguous()
    k, v = (x[:, :, of_rank[1]].contiguous() for x in (paged.k, paged.v))
    call, out = attending(plan, q, k, v)
    step_us = bench.slowest_us(call)
    yield {
        "one_rank_us": one_us,
        "step_us": step_us,
        "predicted_attend_us": plan.predicted_us,
        "speed_up": one_us / step_us,
        "max_err": bench.error(out, of_rank[0], rounds_parts=False),
        "tolerance": bench.answer.limit(False),
    }


PARTS = {"link": link, "context": context, "tensor": tensor}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bench/distributed.py")
    add = parser.add_argument
    add("--parts", default="link,context,tensor", help="what to measure (%(default)s)")
    add("--tree", default="1,64:524288,128", help="nodes and tokens by level (%(default)s)")
    add("--q-heads", type=int, default=32)
    add("--kv-heads", type=int, default=8)
    add("--head-dim", type=int, default=128)
    add("--dtype", choices=["bf16", "fp16", "fp32"], default="bf16")
    add("--q-len", type=int, default=1, help="query rows of each sequence")
    add("--page-tokens", type=int, default=64)
    add("--collectives", default="all_gather,all_to_all", help="of context (%(default)s)")
    add("--head-parts", default="1,2", help="of context: what overlaps (%(default)s)")
    add("--device", choices=["cuda", "cpu"], default="cuda")
    add("--reps", type=int, default=25, help="timed runs")
    add("--out", metavar="FILE", help="where the JSON lines go too")
    add("--commit", help="for records, where there is no git")
    return parser


def main() -> int:
    options = arguments().parse_args()
    if options.device == "cuda":
        local = int(os.environ["LOCAL_RANK"])
        torch.cuda.set_device(local)
        dist.init_process_group("nccl", device_id=torch.device("cuda", local))
    else:
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
    bench = Bench(options)
    base = {
        "bench": "distributed",
        **records.shape_fields(bench.shape, options.dtype),
        "ranks": bench.ranks,
        **records.device_fields(options.device),
        "versions": {"pando": pando_attn.__version__, "torch": torch.__version__},
        "reps": options.reps,
        "commit": options.commit or records.commit_of_tree(),
        "command": records.command_text("torchrun bench/distributed.py", sys.argv[1:]),
    }
    lines, failed = [], 0
    for name in options.parts.split(","):
        if name != "link" and bench.problem is None:
            bench.make()
        try:
            for measured in PARTS[name](bench):
                lines.append(json.dumps({**base, "part": name, **measured}))
                if bench.rank == 0:
                    print(lines[-1], flush=True)
        except WrongAnswer as wrong:
            failed = 1
            if bench.rank == 0:
                print(f"{name}: wrong answer: {wrong}", file=sys.stderr, flush=True)
    if bench.rank == 0 and options.out:
        with open(options.out, "w") as file:
            file.writelines(line + "\n" for line in lines)
    dist.destroy_process_group()
    return failed


if __name__ == "__main__":
    sys.exit(main())
