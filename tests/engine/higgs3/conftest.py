# SPDX-License-Identifier: Apache-2.0
"""Published folders of small random models, and their references."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.higgs3.reference import Higgs3Reference

# Sets what the engine reads when it starts.
from tests.engine.streams.conftest import emitted_steps, preempted  # noqa: F401
from tests.support.higgs3 import write_higgs3
from tests.support.threads import one_thread  # noqa: F401


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model: "plain", or one that "ends" often."""
    folders: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in folders:
            folder = tmp_path_factory.mktemp(name)
            seed, louder = {"plain": (0, 1.0), "ends": (2, 3.5)}[name]
            folders[name] = write_higgs3(folder, seed=seed, louder=louder)
        return folders[name]

    return get


@pytest.fixture(scope="session")
def higgs(published: Callable[[str], Path]) -> Callable[[str], Higgs3Reference]:
    """The reference of such a folder."""
    references: dict[str, Higgs3Reference] = {}

    def get(name: str) -> Higgs3Reference:
        if name not in references:
            references[name] = Higgs3Reference(published(name))
        return references[name]

    return get
