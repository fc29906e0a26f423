"""A decode step as a CUDA graph: the host plans, and one replay does all else."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from transformers import PreTrainedModel

from .._step_plans import StepPlans
from ._kv_cache import KvCache, KvStep, Layout
from ._model import forward

#: A graph that would be replayed less often costs more than it saves: its capture is as slow as
#: some steps without one.
FEWEST_STEPS = 8


def supported(device: torch.device) -> bool:
    """Whether a device has graphs."""
    return device.type == "cuda"


def capture(work: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """What does `work` again, on the tensors that it has used."""
    graph = torch.cuda.CUDAGraph()
    # By default PyTorch captures a stream of the device that was current at the first capture of
    # the process, and what `work` launches on another device would not be in the graph.
    stream = torch.cuda.Stream(device)
    # Other threads go on, such as that of NCCL, which asks for its events.
    mode = "thread_local"
    with torch.cuda.device(device), torch.cuda.graph(graph, stream=stream, capture_error_mode=mode):
        work()
    return graph.replay


class DecodeGraph:
    """Decode steps of up to ``rows`` sequences, which take the launches of one graph.

    What differs between steps is in device memory before a replay: tokens, positions, where their
    KV goes, and the plan. Rows without a sequence compute something that nobody reads; their KV
    goes to the cache's scratch page. A replay needs the results of the one before to have been
    read by the host, as sampling does.
    """

    def __init__(self, model: PreTrainedModel, cache: KvCache, rows: int) -> None:
        device = cache.shape.device
        self.rows = rows
        self._model = model
        self._cache = cache
        self._plans = StepPlans()  # of its own: the graph knows where they are
        self._host = torch.zeros((3, rows), dtype=torch.int64, pin_memory=device.type == "cuda")
        self._inputs = torch.zeros((3, rows), dtype=torch.int64, device=device)
        self._all_rows = torch.arange(rows, device=device)
        self._logits: Any = None
        self._tables: Any = None
        self._replay: Callable[[], None] | None = None

    def first(self, tokens: list[int], layout: Layout) -> torch.Tensor:
        """Logits ``[rows, vocab_size]`` in fp32 of a step without the graph: it makes the plans,
        and all else that must not be captured."""
        self._bring(tokens, layout)
        self._forward()
        return self._logits

    def capture(self) -> None:
        """The step that was the first, for :meth:`run`."""
        self._replay = capture(self._forward, self._cache.shape.device)

    def run(self, tokens: list[int], layout: Layout) -> torch.Tensor:
        """Logits ``[len(tokens), vocab_size]`` in fp32, until the next call; ``tokens`` are those
        of up to ``rows`` sequences.

        ValueError when the plan has outgrown what the graph knows.
        """
        assert self._replay is not None
        self._plans.update(layout.tables)
        self._bring(tokens, layout)
        self._replay()
        return self._logits[: len(tokens)]

    def _bring(self, tokens: list[int], layout: Layout) -> None:
        """Enqueues the copies of what differs between steps, but for the plans."""
        count = len(tokens)
        host = self._host.numpy()
        host[:, count:] = 0
        host[2, count:] = self._cache.scratch_slot
        host[:, :count] = tokens, layout.positions, layout.slots
        self._tables = layout.tables
        self._inputs.copy_(self._host, non_blocking=True)

    def _forward(self) -> None:
        tokens, positions, slots = self._inputs
        step = KvStep(self._cache, self._plans, self._tables, slots, in_graph=True)
        self._logits = forward(self._model, tokens, positions, self._all_rows, step)
        step.check()


class Decoder:
    """Decode steps of a shrinking batch, by graphs where they pay."""

    def __init__(self, model: PreTrainedModel, cache: KvCache, graphs: bool) -> None:
        self._model = model
        self._cache = cache
        self._graphs = graphs and supported(cache.shape.device)
        self._graph: DecodeGraph | None = None

    def run(self, tokens: list[int], layout: Layout, steps_left: int) -> torch.Tensor:
        """Logits after ``tokens``, one of each sequence; ``steps_left`` may follow, this one in."""
        count = len(tokens)
        if self._graph is not None and count <= self._graph.rows // 2:
            self._graph = None  # half of its work would be for nobody
        if self._graph is not None:
            try:
                return self._graph.run(tokens, layout)
            except ValueError:
                self._graph = None  # a plan that has outgrown it; what else is wrong is said below
        if self._graphs and steps_left >= FEWEST_STEPS:
            graph = DecodeGraph(self._model, self._cache, count)
            logits = graph.first(tokens, layout)
            try:
                graph.capture()
                self._graph = graph
            except NotImplementedError:
                raise
            except RuntimeError as error:
                self._graphs = False
                warnings.warn(
                    f"cuda_graph: got {type(self._model).__name__}, which can't be captured "
                    f"({error}); its steps are launched one by one",
                    stacklevel=2,
                )
            return logits
        device = self._cache.shape.device
        inputs = torch.tensor([tokens, layout.positions.tolist(), layout.slots.tolist()])
        ids, positions, slots = inputs.to(device)
        step = KvStep(self._cache, self._cache.plans, layout.tables, slots)
        logits = forward(self._model, ids, positions, torch.arange(count, device=device), step)
        step.check()
        return logits
