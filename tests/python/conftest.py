"""Markers, and what is skipped where."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import pando_attn

    why_not = pando_attn.cuda_unavailable(0)
    if why_not:
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason=why_not))


@pytest.fixture
def plan_updates(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each plan that is made from now on."""
    import pando_attn

    made: list[int] = []
    update = pando_attn.Plan.update
    monkeypatch.setattr(
        pando_attn.Plan,
        "update",
        lambda *args, **options: (made.append(1), update(*args, **options)),
    )
    return made


@pytest.fixture(scope="session")
def rank_groups(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], Any]]:
    """Makes ``ranks.Ranks`` of a size, or gives those that an earlier test has left in order."""
    from ranks import Ranks

    made: dict[int, Any] = {}

    def of_size(size: int) -> Any:
        if size not in made or not all(p.is_alive() for p in made[size].processes):
            made[size] = Ranks(size, tmp_path_factory.mktemp(f"ranks{size}-"))
        return made[size]

    yield of_size
    for group in made.values():
        group.close()
