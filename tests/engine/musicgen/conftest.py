# SPDX-License-Identifier: Apache-2.0
"""Published folders of small random models, and their references."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engine.musicgen.melody import MelodyReference
from tests.engine.musicgen.reference import MusicReference

# Sets what the engine reads when it starts.
from tests.engine.streams.conftest import emitted_steps  # noqa: F401
from tests.support.musicgen import write_musicgen
from tests.support.threads import one_thread  # noqa: F401


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a model as transformers saves it: "mono", "stereo", "melody" or both."""
    folders: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            write_musicgen(folders[name], stereo="stereo" in name, melody="melody" in name)
        return folders[name]

    return get


@pytest.fixture(scope="session")
def music(published: Callable[[str], Path]) -> Callable[[str], MusicReference]:
    """The reference of such a folder."""
    references: dict[str, MusicReference] = {}

    def get(name: str) -> MusicReference:
        if name not in references:
            kind = MelodyReference if "melody" in name else MusicReference
            references[name] = kind(published(name))
        return references[name]

    return get
