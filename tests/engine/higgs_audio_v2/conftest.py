# SPDX-License-Identifier: Apache-2.0
"""The published folder of a small random model, its reference and its codec."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.engine.higgs_audio_v2.reference import HiggsReference

# Sets what the engine reads when it starts.
from tests.engine.streams.conftest import emitted_steps  # noqa: F401
from tests.support.higgs_audio_v2 import write_higgs_audio_v2
from tests.support.threads import one_thread  # noqa: F401
from vllm.unison.codecs.base import Codec
from vllm.unison.codecs.registry import load_codec


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("higgs_audio_v2")
    write_higgs_audio_v2(path)
    return path


@pytest.fixture(scope="session")
def reference(folder: Path) -> HiggsReference:
    return HiggsReference(folder)


@pytest.fixture(scope="session")
def codec(folder: Path) -> Codec:
    return load_codec(str(folder / "codec"), num_codebooks=8)
