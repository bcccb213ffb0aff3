# SPDX-License-Identifier: Apache-2.0
"""Audio longer than a window, over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.engine.streams.conftest import open_engine
from tests.entrypoints.server import Server, running_server
from tests.support.musicgen import SAMPLE_RATE, write_musicgen
from vllm.unison.frontend.defaults import DefaultSamplingParams

pytestmark = pytest.mark.slow

POSITIONS = 64
"""Of the engine: a window has 60 frames."""
LONG = {"duration": 2.6, "extend_stride": 0.5}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("music") / "model"
    write_musicgen(folder)
    return folder


@pytest.fixture(scope="module")
def music(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with running_server(model, folder, f"--max-model-len={POSITIONS}") as server:
        yield server


def posted(server: Server, **fields: Any) -> tuple[int, bytes]:
    body = {"prompt": "warm piano", "response_format": "pcm", "seed": 5} | fields
    return server.request("/v1/audio/generations", json.dumps(body).encode())


def heard(server: Server, **fields: Any) -> NDArray[np.int16]:
    status, body = posted(server, **fields)
    assert status == 200, body
    return np.frombuffer(body, "<i2")


def test_it_is_the_audio_of_llm_generate(music: Server, model: Path) -> None:
    streamed = heard(music, **LONG)
    assert len(streamed) == 2.6 * SAMPLE_RATE
    whole = heard(music, stream=False, **LONG)
    assert np.array_equal(whole, streamed)
    with open_engine(model, max_model_len=POSITIONS) as llm:
        prompt: Any = {"prompt": "warm piano", "mm_processor_kwargs": LONG}
        (output,) = llm.generate(prompt, DefaultSamplingParams(seed=5), use_tqdm=False)
    audio = output.outputs[0].audio
    assert audio is not None and len(audio.codes) == 130
    assert np.abs(streamed / 32768 - audio.samples).max() < 1e-4


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"extend_stride": 0.5}, "extend_stride"),
        ({"duration": 2.6, "extend_stride": 2}, "extend_stride"),
        ({"duration": 2.6, "extend_stride": 0}, "extend_stride"),
        ({"duration": 2.6}, "duration"),
        ({"duration": 4000, "extend_stride": 0.5}, "duration"),
    ],
)
def test_a_refusal_names_the_field(music: Server, fields: dict[str, Any], field: str) -> None:
    status, body = posted(music, **fields)
    error = json.loads(body)["error"]
    assert (status, error["param"]) == (400, field), body
    assert len(heard(music, duration=0.2)) == 0.2 * SAMPLE_RATE
