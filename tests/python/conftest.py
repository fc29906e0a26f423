"""Markers, and what is skipped where."""

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
