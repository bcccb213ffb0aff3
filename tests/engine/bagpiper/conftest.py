# SPDX-License-Identifier: Apache-2.0
"""A published folder of a small random model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

# Sets what the engine reads when it starts.
from tests.engine.streams.conftest import emitted_steps, preempted  # noqa: F401
from tests.support.bagpiper import write_bagpiper
from tests.support.threads import one_thread  # noqa: F401


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache directory."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CACHE_ROOT", str(folder))
        yield folder


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a model as ESPnet publishes it."""
    folder = tmp_path_factory.mktemp("bagpiper")
    return write_bagpiper(folder / "model", folder / "sources")
