"""Markers, and what is skipped where."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import pando_attn

    why_not = pando_attn.cuda_unavailable(0)
    if why_not:
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason=why_not))
