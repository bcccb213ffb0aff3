# SPDX-License-Identifier: Apache-2.0
"""One Ray cluster for all tests here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.entrypoints.ray_cluster.cluster import ray_cluster


@pytest.fixture(scope="package")
def cluster() -> Iterator[Any]:
    """Two nodes, each with room for one engine."""
    with ray_cluster() as made:
        yield made
