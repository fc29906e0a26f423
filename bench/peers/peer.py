"""What the harness asks of everything that it times."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable
from typing import Any

import torch

from .problem import Problem
from .traces import TraceStep

Config = dict[str, Any]


class Skip(Exception):
    """A peer that is not measured here; the text says why."""


class Peer:
    """One way to compute attention of a problem. Subclasses are listed in catalog.py."""

    name: str  #: as in --peers and in records
    about: str  #: one line: whose code, and what shares
    devices: tuple[str, ...] = ("cuda",)
    packages: tuple[str, ...] = ("torch",)  #: of PyPI, whose versions are recorded
    rounds_levels = False  #: whether it merges results that are rounded to the input type
    shares = True  #: whether it reads shared tokens once; what does not may be hopeless

    def check(self, problem: Problem) -> None:
        """Raises Skip with the reason when it can't compute this, or is not installed."""

    def configs(self, problem: Problem) -> list[Config]:
        """What is tried; the fastest right one counts."""
        return [{}]

    def prepare(self, problem: Problem, config: Config) -> Callable[[], torch.Tensor]:
        """Everything that does not belong to a step of a decode loop: layout, planning. The call
        returns ``[batch * q_len, q_heads, head_dim]`` in memory that replays write again."""
        raise NotImplementedError

    def kv_bytes(self, problem: Problem) -> int:
        """How much of K and V one call reads, so that the next one can be given other memory."""
        return problem.kv_bytes

    def planned(self) -> dict[str, float]:
        """Of the planning that ``prepare`` did last, where there is such a thing: ``plan_us`` of
        host time, ``predicted_us`` of what was planned."""
        return {}

    def versions(self) -> dict[str, str]:
        return {name: version_of(name) for name in self.packages}


def version_of(package: str) -> str:
    if package == "torch":
        return torch.__version__
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def require_module(package: str, module: str) -> Any:
    """The module, or Skip that says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise Skip(f"needs {package}: {error}") from None


def equal_lengths(problem: Problem) -> None:
    if isinstance(problem.shape, TraceStep):
        raise Skip("takes contexts of one length, or levels of equal nodes")


def no_page_size(problem: Problem) -> None:
    if problem.shape.page_tokens:
        raise Skip("takes no page tables")


def rows_in_last_level(problem: Problem) -> None:
    """Whether a causal mask on the last level alone is right for several query rows."""
    shape = problem.shape
    last = problem.levels[-1]
    if shape.q_len > 1 and (last.nodes < shape.batch or last.tokens < shape.q_len - 1):
        raise Skip("several last rows of a context that is all shared need a mask in between")


def one_row(problem: Problem) -> None:
    if problem.shape.q_len != 1:
        raise Skip("has no causal mask for several last rows of a context")


def sharing(problem: Problem) -> None:
    if not problem.shape.shares:
        raise Skip("nothing is shared in this shape")


def equal_groups(problem: Problem) -> None:
    for level in problem.levels:
        if problem.shape.batch % level.nodes:
            raise Skip(f"{level.nodes} nodes do not divide {problem.shape.batch} sequences")
