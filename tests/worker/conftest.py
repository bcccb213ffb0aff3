# SPDX-License-Identifier: Apache-2.0
"""A small multi-stream model's configuration."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.threads import one_thread  # noqa: F401
from vllm.unison.testing.random_checkpoint import stream_layout, write_random_speech_lm


@pytest.fixture(scope="session")
def speech_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of four streams."""
    folder = tmp_path_factory.mktemp("speech-model")
    return write_random_speech_lm(folder, "llama", layout=stream_layout(4))
