# SPDX-License-Identifier: Apache-2.0
"""A session of /v1/audio/speech/stream over real sockets: a client that reads nothing."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, WebSocket

from tests.entrypoints.test_speech_session import CONFIG, DONE, PCM, Service, text
from vllm.entrypoints.speech.server.body import BodyLimits
from vllm.entrypoints.speech.server.endpoints import speech_stream as module
from vllm.entrypoints.speech.server.endpoints.speech_stream import SpeechSession
from vllm.entrypoints.speech.server.lifecycle import Lifecycle

PATIENCE = 120
SENTENCE = "A" * 4000 + ". "
"""4001 frames, 2.5 MB: half of what a connection of this machine takes without a reader."""
NUM_SENTENCES = 12
MAX_IN_BUFFERS = 16 * 2**20
"""What the kernel may hold of a connection, whatever the server does."""


class Sessions:
    """A server of sessions whose engines are made up.

    Attributes:
        services: of the sessions that began.
        ended: is set when one has.
        port: where it listens.
    """

    def __init__(self) -> None:
        self.services: list[Service] = []
        self.ended = threading.Event()
        self._begun = threading.Event()
        application = FastAPI()
        application.add_api_websocket_route("/", self._session)
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        config = uvicorn.Config(application, log_level="warning")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        asyncio.run(self._server.serve([self._socket]))

    async def _session(self, websocket: WebSocket) -> None:
        service: Any = Service()
        self.services.append(service)
        try:
            await SpeechSession(websocket, service, Lifecycle(), BodyLimits()).run()
        finally:
            self.ended.set()

    def stop(self) -> bool:
        """Let it end; whether it does."""
        self._server.should_exit = True
        self._thread.join(PATIENCE)
        return not self._thread.is_alive()


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sessions]:
    monkeypatch.setattr(module, "IDLE_SECONDS", 1.0)
    made = Sessions()
    yield made
    made.stop()


def connect(port: int, *messages: dict[str, str]) -> socket.socket:
    """A client that has sent messages and read the answer to its handshake alone."""
    client = socket.create_connection(("127.0.0.1", port), PATIENCE)
    key = base64.b64encode(os.urandom(16)).decode()
    client.sendall(
        "GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += client.recv(1)
    assert answer.startswith(b"HTTP/1.1 101 ")
    for message in messages:
        data = json.dumps(message).encode()
        # RFC 6455, section 5.2: a whole text message under a mask of zeros.
        size = len(data)
        length = bytes([0x80 | size] if size < 126 else [0xFE, *size.to_bytes(2, "big")])
        client.sendall(b"\x81" + length + bytes(4) + data)
    return client


def read_all(client: socket.socket) -> int:
    """Bytes up to the end of a connection."""
    total = 0
    while data := client.recv(1 << 16):
        total += len(data)
    return total


def test_of_a_client_that_reads_nothing_little_is_made_and_held(sessions: Sessions) -> None:
    said = [text(SENTENCE)] * NUM_SENTENCES
    client = connect(sessions.port, CONFIG, *said, DONE)
    assert sessions.ended.wait(PATIENCE)
    (service,) = sessions.services
    made = len(service.requests)
    assert made < NUM_SENTENCES and service.requests[-1].was_left
    sent = read_all(client)
    assert sent <= min(made * len(SENTENCE) * PCM + 2**20, MAX_IN_BUFFERS)
    # The next client does not notice.
    other = connect(sessions.port, CONFIG, text("Alpha."), DONE, {"type": "session.close"})
    assert read_all(other) > 6 * PCM
    assert [request.is_over for request in sessions.services[-1].requests] == [True]
    assert sessions.stop()


def test_a_client_that_is_gone_ends_its_session(sessions: Sessions) -> None:
    client = connect(sessions.port, CONFIG, text(SENTENCE), DONE)
    client.recv(100)
    client.close()
    assert sessions.ended.wait(PATIENCE)
    (request,) = sessions.services[0].requests
    assert request.was_left and not request.is_over
    assert sessions.stop()
