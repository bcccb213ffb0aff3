# SPDX-License-Identifier: Apache-2.0
"""A server of a stereo model that makes music from a description, in the published format."""

from __future__ import annotations

import base64
import io
import json
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import soundfile
from numpy.typing import NDArray

from tests.entrypoints.server import API_KEY, MAX_MODEL_LEN, MODEL_NAME, Server, running_server
from tests.entrypoints.test_cli import run
from tests.support.musicgen import SAMPLE_RATE, write_musicgen
from vllm.entrypoints.speech.encoding import FORMATS

pytestmark = pytest.mark.slow

SPEECH, GENERATIONS = "/v1/audio/speech", "/v1/audio/generations"
HALF_A_SECOND: dict[str, Any] = {"duration": 0.5, "seed": 5}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("music") / "model"
    write_musicgen(folder, stereo=True, max_positions=MAX_MODEL_LEN)
    return folder


@pytest.fixture(scope="module")
def music(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running_server(model, tmp_path_factory.mktemp("server")) as server:
        yield server


def posted(server: Server, path: str, **fields: Any) -> tuple[int, bytes]:
    return server.request(path, json.dumps(fields).encode())


def heard(server: Server, path: str = GENERATIONS, **fields: Any) -> NDArray[np.int16]:
    """16-bit samples [num_samples, 2] of raw PCM."""
    text = {"input" if path == SPEECH else "prompt": "lo fi beat"}
    status, body = posted(server, path, **(text | {"response_format": "pcm"} | fields))
    assert status == 200, body
    return np.frombuffer(body, "<i2").reshape(-1, 2)


def assert_same_sound(found: NDArray[np.int16], expected: NDArray[np.int16]) -> None:
    """But for the rounding of chunks."""
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_all_ways_give_the_same_music(music: Server) -> None:
    streamed = heard(music, **HALF_A_SECOND)
    assert streamed.shape == (SAMPLE_RATE // 2, 2)
    assert not np.array_equal(streamed[:, 0], streamed[:, 1])
    assert_same_sound(heard(music, stream=False, **HALF_A_SECOND), streamed)
    assert_same_sound(heard(music, SPEECH, voice="default", **HALF_A_SECOND), streamed)
    assert_same_sound(heard(music, max_tokens=25, seed=5), streamed)
    for other in ({"seed": 6}, {"guidance_scale": 1.0}, {"negative_prompt": "noise"}):
        assert not np.array_equal(heard(music, **(HALF_A_SECOND | other)), streamed)


@pytest.mark.parametrize("stream", [True, False])
def test_every_container_s_header_says_two_channels(music: Server, stream: bool) -> None:
    for name in sorted(set(FORMATS) - {"pcm", "aac"}):
        fields = {"prompt": "jazz", "response_format": name, "stream": stream, **HALF_A_SECOND}
        status, body = posted(music, GENERATIONS, **fields)
        assert status == 200
        assert soundfile.SoundFile(io.BytesIO(body)).channels == 2, name


def test_several_clips_are_those_of_their_seeds(music: Server) -> None:
    fields = {"prompt": "lo fi beat", "n": 3, **HALF_A_SECOND}
    status, body = posted(music, GENERATIONS, **fields)
    assert status == 200, body
    answer = json.loads(body)
    assert (answer["sample_rate"], answer["channels"]) == (SAMPLE_RATE, 2)
    for index, clip in enumerate(answer["data"]):
        with wave.open(io.BytesIO(base64.b64decode(clip["b64_json"]))) as file:
            assert (file.getnchannels(), file.getnframes()) == (2, SAMPLE_RATE // 2)
            samples = np.frombuffer(file.readframes(file.getnframes()), "<i2").reshape(-1, 2)
        assert_same_sound(samples, heard(music, **(HALF_A_SECOND | {"seed": 5 + index})))
    usage = answer["usage"]
    # The start column, and three words and their end.
    assert usage["input_tokens"] == 3 * (1 + 4)
    assert usage["input_token_details"]["text_tokens"] == 3 * 4
    assert usage["output_token_details"]["audio_tokens"] == 3 * 25
    assert usage["output_token_details"]["audio_seconds"] == pytest.approx(1.5)


def test_openai_s_client_and_events(music: Server) -> None:
    client = openai.OpenAI(base_url=f"{music.url}/v1", api_key=API_KEY)
    request = client.audio.speech.with_streaming_response.create(
        model=MODEL_NAME,
        voice="default",
        input="lo fi beat",
        response_format="pcm",
        extra_body=HALF_A_SECOND,
    )
    with request as response:
        assert response.headers["content-type"] == "audio/pcm; rate=8000; channels=2"
        samples = np.frombuffer(response.read(), "<i2").reshape(-1, 2)
    assert_same_sound(samples, heard(music, **HALF_A_SECOND))
    fields = {"prompt": "lo fi beat", "response_format": "pcm", "stream_format": "sse"}
    _, body = posted(music, GENERATIONS, **fields, **HALF_A_SECOND)
    events = [json.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: ")]
    sent = b"".join(base64.b64decode(event.get("audio", "")) for event in events)
    assert np.array_equal(np.frombuffer(sent, "<i2").reshape(-1, 2), samples)
    details = events[-1]["usage"]["output_token_details"]
    assert (details["audio_tokens"], details["audio_seconds"]) == (25, 0.5)


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (GENERATIONS, {"duration": 60}, "duration"),
        (GENERATIONS, {"duration": 0.001}, "duration"),
        (GENERATIONS, {"max_tokens": MAX_MODEL_LEN}, "max_tokens"),
        (GENERATIONS, {"prompt": "beat " * 600}, "prompt"),
        (SPEECH, {"input": "beat " * 600}, "input"),
        (GENERATIONS, {"negative_prompt": "beat " * 600}, "negative_prompt"),
        (GENERATIONS, {"negative_prompt": "noise", "guidance_scale": 1.0}, "negative_prompt"),
        (GENERATIONS, {"task": "sing"}, "task"),
        (GENERATIONS, {"task": "continue"}, "task"),
        (SPEECH, {"voice": "slt"}, "voice"),
        (SPEECH, {"language": "en"}, "language"),
    ],
)
def test_errors_name_the_field(
    music: Server, path: str, fields: dict[str, Any], param: str
) -> None:
    text = {"input" if path == SPEECH else "prompt": "beat"}
    status, body = posted(music, path, **(text | fields))
    error = json.loads(body)["error"]
    assert (status, error["param"]) == (400, param), error
    assert error["message"].startswith(param)


def test_the_command_line_makes_the_same_music(music: Server, model: Path, tmp_path: Path) -> None:
    options = ["--duration", "0.5", "--seed", "5", "--negative-prompt", "noise"]
    options += ["--guidance-scale", "2"]
    where = {"there": ["--url", music.url, "--api-key", API_KEY]}
    where["here"] = ["--model", str(model), "--dtype", "float32"]
    expected = heard(music, negative_prompt="noise", guidance_scale=2.0, **HALF_A_SECOND)
    for name, more in where.items():
        # A streamed FLAC file does not say its length.
        path = tmp_path / f"{name}.{'flac' if name == 'here' else 'wav'}"
        run("speak", "lo fi beat", "-o", str(path), *options, *more)
        samples, rate = soundfile.read(path, dtype="int16")
        assert rate == SAMPLE_RATE
        assert_same_sound(samples, expected)
