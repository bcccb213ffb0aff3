# SPDX-License-Identifier: Apache-2.0
"""/v1/audio/speech/stream of a real server: the audio of the HTTP route, and clients that cancel
and leave."""

from __future__ import annotations

import base64
import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.entrypoints.server import (
    API_KEY,
    PATIENCE,
    RECORDED,
    SAID,
    SAMPLES_PER_FRAME,
    Server,
    recording,
)
from tests.entrypoints.test_commands import COMMAND, environment
from tests.entrypoints.test_server import blocks_are_free, counted, generated_tokens
from vllm.entrypoints.speech.server.endpoints.speech_stream import NORMAL

pytestmark = pytest.mark.slow

PATH = "/v1/audio/speech/stream"
SENTENCES = ["Hello there.", "What a day!", "Is it?"]
SAMPLING: dict[str, Any] = {"seed": 5, "temperature": 0.9, "max_tokens": 20}
LONG = 900
"""Frames of a sentence that takes a while."""


@contextlib.contextmanager
def session(
    server: Server, config: dict[str, Any] | None = None, **headers: str
) -> Iterator[ClientConnection]:
    url = server.url.replace("http", "ws") + PATH
    sent = {"authorization": f"Bearer {API_KEY}"} | headers
    with connect(url, additional_headers=sent, open_timeout=PATIENCE, close_timeout=1) as made:
        if config is not None:
            send(made, "session.config", **config)
        yield made


def send(client: ClientConnection, kind: str, **fields: Any) -> None:
    client.send(json.dumps({"type": kind} | fields))


@dataclass
class Spoken:
    """A sentence as it came."""

    start: dict[str, Any]
    audio: bytes = b""
    num_messages: int = 0
    done: dict[str, Any] = field(default_factory=dict)


def utterance(client: ClientConnection) -> list[Spoken]:
    """The sentences of the next utterance."""
    spoken: list[Spoken] = []
    while True:
        message = client.recv(PATIENCE)
        if isinstance(message, bytes):
            spoken[-1].audio += message
            spoken[-1].num_messages += 1
            continue
        event = json.loads(message)
        if event["type"] == "audio.start":
            spoken.append(Spoken(event))
        elif event["type"] == "audio.done":
            spoken[-1].done = event
        else:
            assert event["type"] == "session.done", event
            assert event["total_sentences"] == len(spoken)
            return spoken


def over_http(server: Server, text: str, **fields: Any) -> bytes:
    answer = httpx.post(
        f"{server.url}/v1/audio/speech",
        json={"input": text} | fields,
        headers={"authorization": f"Bearer {API_KEY}"},
        timeout=PATIENCE,
    )
    assert answer.status_code == 200, answer.text
    return answer.content


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": "pcm"},
        {"response_format": "wav", "voice": "alloy", "guidance_scale": 1.0},
        {"response_format": "flac", "voice": RECORDED},
        {
            "response_format": "pcm",
            "ref_audio": base64.b64encode(recording()).decode(),
            "ref_text": SAID,
        },
    ],
    ids=["guided", "voice", "recorded", "cloned"],
)
def test_each_sentence_is_what_the_http_route_makes(server: Server, fields: dict[str, Any]) -> None:
    asked = SAMPLING | fields
    with session(server, asked) as client:
        for letter in " ".join(SENTENCES):
            send(client, "input.text", text=letter)
        send(client, "input.done")
        spoken = utterance(client)
        send(client, "session.config", **asked, stream_audio=False)
        send(client, "input.text", text=SENTENCES[0])
        send(client, "session.close")
        (whole,) = utterance(client)
        with pytest.raises(Exception) as caught:
            client.recv(PATIENCE)
    assert caught.value.rcvd.code == NORMAL  # type: ignore[attr-defined]
    assert [made.start["sentence_text"] for made in spoken] == SENTENCES
    for made in spoken:
        assert made.audio == over_http(server, made.start["sentence_text"], **asked)
        assert made.done["total_bytes"] == len(made.audio)
        assert made.done["usage"]["output_token_details"]["audio_tokens"] == 20
    assert whole.audio == over_http(server, SENTENCES[0], **asked, stream=False)
    assert whole.num_messages == 1


def test_the_key_is_asked_for(server: Server) -> None:
    for key in ("", "Bearer another"):
        with pytest.raises(InvalidStatus) as caught, session(server, authorization=key):
            pass
        assert caught.value.response.status_code == 401


def test_sentences_count_as_requests_and_have_the_client_s_id(server: Server) -> None:
    names = ("websocket_connections", "request_success")
    before = [counted(server, name) for name in names]
    with session(server, SAMPLING, **{"X-Request-Id": "mine"}) as client:
        send(client, "input.text", text=" ".join(SENTENCES))
        send(client, "input.done")
        ids = [made.start["request_id"] for made in utterance(client)]
    assert ids == [f"speech-0-{index}-mine" for index in range(3)]
    made = [counted(server, name) - was for name, was in zip(names, before, strict=True)]
    assert made == [1, 3]


@pytest.mark.parametrize("way", ["cancel", "close", "vanish"])
def test_who_cancels_or_leaves_frees_the_request_at_once(server: Server, way: str) -> None:
    assert blocks_are_free(server)
    before = generated_tokens(server)
    config = SAMPLING | {"max_tokens": LONG, "guidance_scale": 3.0, "response_format": "pcm"}
    with session(server, config) as client:
        send(client, "input.text", text=" ".join(SENTENCES))
        send(client, "input.done")
        while not isinstance(client.recv(PATIENCE), bytes):
            pass
        if way == "cancel":
            send(client, "input.cancel")
            while isinstance(message := client.recv(PATIENCE), bytes):
                pass
            event = json.loads(message)
            assert (event["type"], event["cancelled"]) == ("audio.done", True)
            assert 0 < event["total_bytes"] < 2 * SAMPLES_PER_FRAME * LONG
            event = json.loads(client.recv(PATIENCE))
            assert (event["type"], event["cancelled"]) == ("session.done", True)
        elif way == "close":
            client.close()
        else:
            client.socket.shutdown(socket.SHUT_RDWR)
        while not blocks_are_free(server):
            pass
        assert generated_tokens(server) - before < LONG
        if way == "cancel":
            json.loads(client.recv(PATIENCE))  # the utterance that was empty
            send(client, "session.config", **SAMPLING)
            send(client, "input.text", text=SENTENCES[0])
            send(client, "input.done")
            (made,) = utterance(client)
            assert made.audio == over_http(server, SENTENCES[0], **SAMPLING)


def test_standard_input_is_spoken_as_it_comes(server: Server) -> None:
    """The first sentence is there before the second is complete; Ctrl-C ends without a trace."""
    options = ["--seed", "5", "--temperature", "0.9", "--max-tokens", "20"]
    command = [*COMMAND, "speak", "--stdin", "--url", server.url, "-o", "-", "--format", "pcm"]
    process = subprocess.Popen(
        [*command, *options],
        env=environment(OPENAI_API_KEY=API_KEY),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Whoever runs the tests in the background may ignore SIGINT, which a child inherits.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdin is not None and process.stdout is not None
    expected = [over_http(server, text, response_format="pcm", **SAMPLING) for text in SENTENCES]
    process.stdin.write(" ".join(SENTENCES)[:15].encode())
    process.stdin.flush()
    assert process.stdout.read(len(expected[0])) == expected[0]
    process.stdin.write(" ".join(SENTENCES)[15:].encode() + b"\n")
    process.stdin.flush()
    assert process.stdout.read(len(b"".join(expected[1:]))) == b"".join(expected[1:])
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, rest, errors) == (130, b"", b"")


def test_the_example_speaks_words_as_they_come(server: Server, tmp_path: Any) -> None:
    from tests.entrypoints.test_serving_page import ROOT

    done = subprocess.run(
        [sys.executable, str(ROOT / "examples/stream_speech.py"), server.url],
        cwd=tmp_path,
        env=environment(OPENAI_API_KEY=API_KEY),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("speaking: ") == 3
    samples = np.frombuffer((tmp_path / "said.wav").read_bytes()[44:], "<i2")
    assert len(samples) % SAMPLES_PER_FRAME == 0 and len(samples) > 0
