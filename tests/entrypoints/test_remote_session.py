# SPDX-License-Identifier: Apache-2.0
"""What `vllm speak --stdin --url` sends to a server, and what it makes of the answers."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from websockets.sync.client import ClientConnection
from websockets.sync.server import Server, ServerConnection, serve

from vllm.entrypoints.speech.cli import remote_session as module
from vllm.entrypoints.speech.cli.live_text import lines, read_text, sentences
from vllm.entrypoints.speech.cli.remote import RemoteError
from vllm.entrypoints.speech.cli.remote_session import RemoteSession
from vllm.entrypoints.speech.encoding import encode_whole, make_encoder, pcm16

Answer = Callable[[ServerConnection], None]
RATE = 16000


@contextlib.contextmanager
def serving(answer: Answer, **options: Any) -> Iterator[str]:
    """The address of a server that gives each connection to `answer`."""

    def handle(connection: ServerConnection) -> None:
        assert connection.request is not None
        assert connection.request.path == "/v1/audio/speech/stream"
        answer(connection)

    server: Server = serve(handle, "127.0.0.1", 0, **options)
    with server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.socket.getsockname()[1]}"
        server.shutdown()


def speak(url: str, pieces: Iterable[str], name: str = "pcm", **config: Any) -> bytes:
    def encoder(rate: int, num_channels: int) -> Any:
        return make_encoder(name, rate, is_whole=True, num_channels=num_channels)

    return b"".join(RemoteSession(url, "a-key").speak(config, pieces, encoder))


def start(connection: ServerConnection, channels: int = 1) -> None:
    connection.send(json.dumps({"type": "audio.start", "sample_rate": RATE, "channels": channels}))


@pytest.mark.parametrize("channels", [1, 2])
def test_all_sentences_become_one_file(channels: int) -> None:
    seen: list[dict[str, Any]] = []
    shape = (300,) if channels == 1 else (300, 2)
    samples = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)

    def answer(connection: ServerConnection) -> None:
        assert connection.request is not None
        assert connection.request.headers["authorization"] == "Bearer a-key"
        for message in connection:
            seen.append(json.loads(message))
            if seen[-1]["type"] == "input.done":
                start(connection, channels)
                connection.send(pcm16(samples))
                connection.send('{"type": "audio.done"}')
                connection.send('{"type": "session.done"}')
            if seen[-1]["type"] == "session.close":
                break

    with serving(answer) as url:
        file = speak(url + "/v1", ["one\ntw", "o\n", "\n"], "flac", voice="slt", seed=1)
    expected = encode_whole("flac", np.concatenate([samples, samples]), RATE)
    assert file == expected
    assert seen == [
        {
            "type": "session.config",
            "voice": "slt",
            "seed": 1,
            "response_format": "pcm",
            "stream_audio": True,
        },
        {"type": "input.text", "text": "one"},
        {"type": "input.done"},
        {"type": "input.text", "text": "tw"},
        {"type": "input.text", "text": "o"},
        {"type": "input.done"},
        {"type": "session.close"},
    ]


def test_failures_are_told_in_a_line() -> None:
    def refuses(connection: ServerConnection) -> None:
        connection.recv()
        connection.send(json.dumps({"type": "error", "message": "voice must be one of ['slt']"}))

    def breaks_off(connection: ServerConnection) -> None:
        start(connection)
        connection.close(1012)

    def leaves(connection: ServerConnection) -> None:
        connection.recv()  # and closes with 1000, as after all is spoken

    def is_another(connection: ServerConnection) -> None:
        connection.send("hello")

    def sends_sound_first(connection: ServerConnection) -> None:
        connection.send(b"ab")

    def ends_what_nobody_began(connection: ServerConnection) -> None:
        connection.send('{"type": "session.done"}')
        connection.send('{"type": "session.done"}')

    def turns_away(connection: ServerConnection, request: Any) -> Any:
        return connection.respond(401, "no")

    for answer, words in (
        (refuses, r"^voice must be one of \['slt'\]$"),
        (breaks_off, "broke off.*1012"),
        (leaves, "broke off.*1000"),
        (is_another, "did not answer as a server of speech"),
        (sends_sound_first, "did not answer as a server of speech"),
        (ends_what_nobody_began, "did not answer as a server of speech"),
    ):
        with serving(answer) as url, pytest.raises(RemoteError, match=words):
            speak(url, ["hi"])
    with (
        serving(refuses, process_request=turns_away) as url,
        pytest.raises(RemoteError, match="401 Unauthorized"),
    ):
        speak(url, ["hi"])
    for url in ("ws://127.0.0.1:1", "nowhere"):
        with pytest.raises(RemoteError, match=url):
            speak(url, ["hi"])


def test_what_a_server_says_before_it_closes_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    send = module._send

    def send_too_late(connection: ClientConnection, kind: str, **fields: Any) -> None:
        connection.recv_events_thread.join()  # ends when the connection is closed
        send(connection, kind, **fields)

    def refuses(connection: ServerConnection) -> None:
        connection.send(json.dumps({"type": "error", "message": "the server is full"}))

    monkeypatch.setattr(module, "_send", send_too_late)
    with serving(refuses) as url, pytest.raises(RemoteError, match=r"^the server is full$"):
        speak(url, ["hi"])


def test_no_more_text_is_sent_than_the_server_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_UNSPOKEN_CHARACTERS", 10)
    session = RemoteSession("http://nowhere")
    is_sent = threading.Event()

    def send() -> None:
        for size in (4, 6, 1):
            session._wait_for_room(size)
            session._end_utterance()
        session._wait_for_room(30)
        is_sent.set()

    sending = threading.Thread(target=send, daemon=True)
    sending.start()
    while [*session._unspoken] != [4, 6, 0]:
        assert sending.is_alive()
    assert not is_sent.wait(0.05)
    session._note_spoken()
    while [*session._unspoken] != [6, 1, 0]:
        assert sending.is_alive()
    assert not is_sent.wait(0.05)
    # A line that is too long by itself goes when nothing else waits: the server says so.
    session._note_spoken()
    assert not is_sent.wait(0.05)
    session._note_spoken()
    sending.join()
    assert [*session._unspoken] == [30]


def test_text_that_cannot_be_read_is_told() -> None:
    def answer(connection: ServerConnection) -> None:
        for _ in connection:
            pass

    def pieces() -> Iterator[str]:
        yield "hi"
        raise ValueError("standard input must be UTF-8")

    with serving(answer) as url, pytest.raises(ValueError, match="must be UTF-8"):
        speak(url, pieces())


def test_standard_input_comes_as_it_is_written() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"Hello, Zo\xc3")
    pieces = read_text(reader)
    assert next(pieces) == "Hello, Zo"
    os.write(writer, b"\xab.")
    assert next(pieces) == "ë."
    os.write(writer, b"\xff")
    with pytest.raises(ValueError, match="standard input must be UTF-8"):
        next(pieces)
    os.close(writer)
    os.close(reader)


def test_a_line_s_end_is_the_end_of_a_sentence() -> None:
    assert [*lines(["a\nb", "\n", "\nc"])] == [
        ("a", True),
        ("b", False),
        ("", True),
        ("", True),
        ("c", False),
    ]
    text = ["Hello there. What", " a day\nand what", " a night\n\n"]
    assert [*sentences(text)] == ["Hello there.", "What a day", "and what a night"]
    assert not [*sentences(["\n \n"])]
