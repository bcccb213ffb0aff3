# SPDX-License-Identifier: Apache-2.0
"""Order of the whole run: what fails fast comes first."""

from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Move the tests marked ``slow`` to the end, and keep the order otherwise."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is not None)
