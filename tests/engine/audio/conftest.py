# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of these tests, and preemptions counted."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.engine.streams.conftest import checkpoint  # noqa: F401
from vllm.unison.testing.random_checkpoint import stream_layout, write_random_speech_lm
from vllm.v1.core.sched.scheduler import Scheduler

CODEBOOK_SIZES = {"encodec": 1024, "mimi": 2048, "xcodec": 1024}


@pytest.fixture(scope="session")
def model_of_codec(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A model with a codec of a kind."""

    def get(kind: str) -> Path:
        layout = stream_layout(4, delays=[0, 2, 1, 4], codebook_size=CODEBOOK_SIZES[kind])
        folder = tmp_path_factory.mktemp(kind)
        return write_random_speech_lm(folder, "llama", layout=layout, codec=kind)

    return get


@pytest.fixture
def preempted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Of every preemption so far, the frames whose audio had arrived."""
    counts: list[int] = []
    preempt = Scheduler._preempt_request

    def counting(self: Scheduler, request: Any, *args: Any, **kwargs: Any) -> None:
        counts.append(request.streams.num_audio_frames)
        preempt(self, request, *args, **kwargs)

    monkeypatch.setattr(Scheduler, "_preempt_request", counting)
    return counts
