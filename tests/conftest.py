# SPDX-License-Identifier: Apache-2.0
"""Order of the whole run: what fails fast comes first."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run tests without an engine first, then those with one, then those marked ``slow``.

    An engine also changes its process for good (upstream replaces methods of transformers' classes
    that it wraps), so what needs none must not come after it.
    """

    def rank(item: pytest.Item) -> tuple[bool, bool]:
        starts_engine = "engine" in item.path.parent.parts or item.path.name == "test_speak.py"
        return item.get_closest_marker("slow") is not None, starts_engine

    items.sort(key=rank)
