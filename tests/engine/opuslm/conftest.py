# SPDX-License-Identifier: Apache-2.0
"""Published folders of small random models, and their references."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

# Sets what the engine reads when it starts.
from tests.engine.streams.conftest import emitted_steps, preempted  # noqa: F401
from tests.engine.streams.reference import Reference
from tests.support.opuslm import write_opuslm, write_speech_lm
from tests.support.threads import one_thread  # noqa: F401


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The cache directory, where folders are made for the engine."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("VLLM_CACHE_ROOT", str(folder))
        yield folder


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model as ESPnet publishes it, by its backbone."""
    folders: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in folders:
            folders[kind] = write_opuslm(tmp_path_factory.mktemp(kind) / "model", kind)
        return folders[kind]

    return get


@pytest.fixture(scope="session")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    """The reference of such a model."""
    references: dict[str, Reference] = {}

    def get(kind: str) -> Reference:
        if kind not in references:
            folder = write_speech_lm(tmp_path_factory.mktemp(f"{kind}_reference"), kind)
            references[kind] = Reference(folder)
        return references[kind]

    return get
