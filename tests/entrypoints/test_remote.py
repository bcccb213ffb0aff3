# SPDX-License-Identifier: Apache-2.0
"""What the command line sends to a server, and what it makes of the answer."""

from __future__ import annotations

import contextlib
import email
import email.policy
import json
import socketserver
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest

from vllm.entrypoints.speech.cli.remote import RemoteError, RemoteServer

Answer = Callable[[BaseHTTPRequestHandler, bytes], None]


@contextlib.contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """The address of a server that reads a request's body and gives it to `answer`."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            answer(self, self.rfile.read(int(self.headers["content-length"])))
            self.close_connection = True

        def log_message(self, *args: object) -> None:
            pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
    handler.send_response(status)
    handler.send_header("content-length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def chunks(handler: BaseHTTPRequestHandler, *pieces: bytes) -> None:
    handler.send_response(200)
    handler.send_header("transfer-encoding", "chunked")
    handler.end_headers()
    for piece in pieces:
        handler.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
def test_speech_comes_as_it_is_sent(suffix: str) -> None:
    seen: list[object] = []

    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        seen.append((handler.path, handler.headers["authorization"], json.loads(body)))
        chunks(handler, b"RIFF", b"samples", b"")

    with serving(answer) as url:
        pieces = list(RemoteServer(url + suffix, "key").speak({"input": "hü"}))
    assert b"".join(pieces) == b"RIFFsamples"
    assert seen == [("/v1/audio/speech", "Bearer key", {"input": "hü"})]


def test_speech_that_breaks_off_is_an_error() -> None:
    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        chunks(handler, b"RIFF")

    pieces: list[bytes] = []
    with serving(answer) as url, pytest.raises(RemoteError, match="incomplete"):
        for piece in RemoteServer(url).speak({}):
            pieces.append(piece)
    assert pieces == [b"RIFF"]


@pytest.mark.parametrize(
    "name", ["a.wav", 'q"uo\\te.wav', "ümläut 🐘.wav", 'x"\r\ncontent-type: text/html\r\n\r\n.wav']
)
def test_a_file_is_sent_as_a_form(name: str) -> None:
    data = bytes(range(256)) * 300 + b"\r\n--boundary--\r\n"
    forms: list[dict[str, tuple[str | None, Any]]] = []

    def answer(handler: BaseHTTPRequestHandler, body: bytes) -> None:
        head = f"content-type: {handler.headers['content-type']}\r\n\r\n".encode()
        message = email.message_from_bytes(head + body, policy=email.policy.HTTP)
        forms.append(
            {
                str(part.get_param("name", header="content-disposition")): (
                    part.get_filename(),
                    part.get_payload(decode=True),
                )
                for part in message.iter_parts()  # type: ignore[attr-defined]
            }
        )
        reply(handler, 200, b'{"text": "hello"}')

    with serving(answer) as url:
        server = RemoteServer(url, "key")
        assert server.transcribe(name, data, {"model": "speech", "temperature": 0.5}) == "hello"
    (form,) = forms
    assert set(form) == {"model", "temperature", "file"}
    assert (form["model"][1], form["temperature"][1]) == (b"speech", b"0.5")
    assert form["file"][1] == data
    if name == "a.wav":
        assert form["file"][0] == name


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, b'{"error": {"message": "voice must be one of"}}', "voice must be one of"),
        (401, b'{"error": "Unauthorized"}', "Unauthorized"),
        (502, b"<html>", "502 Bad Gateway"),
        (404, b'{"detail": "Not Found"}', "404 Not Found"),
    ],
)
def test_the_server_s_message_is_the_error_s(status: int, body: bytes, message: str) -> None:
    with serving(lambda handler, _: reply(handler, status, body)) as url:
        with pytest.raises(RemoteError, match=message):
            list(RemoteServer(url).speak({}))
        with pytest.raises(RemoteError, match=message):
            RemoteServer(url).transcribe("a.wav", b"x", {})


def test_an_answer_that_is_no_transcription_is_an_error() -> None:
    answers = [b"<html>", b"[]", b'{"words": []}']
    with serving(lambda handler, _: reply(handler, 200, answers.pop())) as url:
        for _ in range(len(answers)):
            with pytest.raises(RemoteError, match="did not answer with a transcription"):
                RemoteServer(url).transcribe("a.wav", b"x", {})


def test_a_server_that_is_not_there_is_an_error() -> None:
    with serving(lambda handler, _: None) as url:
        pass
    for address in (url, "http://[", "nowhere"):
        with pytest.raises(RemoteError):
            list(RemoteServer(address).speak({}))
