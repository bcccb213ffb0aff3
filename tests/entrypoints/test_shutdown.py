# SPDX-License-Identifier: Apache-2.0
"""Real servers that are told to leave, or whose engine is killed, with clients in the middle of
their answers: every byte is accounted for."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.entrypoints.server import API_KEY, PATIENCE, Server, started_server, wait_until_up
from tests.support.ahead import StartedAhead, selected

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3 * PATIENCE)]

PATIENT = f"--shutdown-timeout={PATIENCE}"
NUM_TOKENS = 900
SAMPLES_BYTES = 2 * 320 * NUM_TOKENS
TEXT = "hello there"
# One row of the batch each, so that all run at once.
UNGUIDED = {"guidance_scale": 1.0}
CHAT: dict[str, Any] = {
    **UNGUIDED,
    "messages": [{"role": "user", "content": TEXT}],
    "modalities": ["audio"],
    "audio": {"format": "pcm16"},
}
PCM: dict[str, Any] = {**UNGUIDED, "input": TEXT, "response_format": "pcm"}
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/audio/speech", PCM),
    ("/v1/audio/speech", PCM | {"response_format": "wav"}),
    ("/v1/audio/speech", PCM | {"stream_format": "sse"}),
    ("/v1/chat/completions", CHAT | {"stream": True}),
]
REQUESTS *= 2
"""Eight streams, of every kind."""


@dataclass
class Outcome:
    """What a client got.

    Attributes:
        samples: audio, as 16-bit samples.
        error: of a status or an event, or "broken" for a body without its end.
        is_done: whether the answer said that it is complete.
    """

    samples: bytes = b""
    error: Any = None
    is_done: bool = False


class Client(threading.Thread):
    """One request, read to its end.

    Attributes:
        has_begun: set with the first bytes of the answer.
    """

    def __init__(self, server: Server, path: str, body: dict[str, Any], seed: int) -> None:
        super().__init__(daemon=True)
        self._url, self._path = server.url, path
        self._body = body | {"max_tokens": NUM_TOKENS, "seed": seed}
        self.has_begun = threading.Event()
        self.outcome = Outcome()
        self.start()

    def run(self) -> None:
        host, port = self._url.removeprefix("http://").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
        headers = {"authorization": f"Bearer {API_KEY}", "content-type": "application/json"}
        data, is_broken = b"", False
        connection.request("POST", self._path, json.dumps(self._body).encode(), headers)
        try:
            response = connection.getresponse()
            while piece := response.read1(2**16):
                data += piece
                if len(data) > 1000:
                    self.has_begun.set()
        except (http.client.IncompleteRead, ConnectionError):
            is_broken = True
        finally:
            connection.close()
            self.has_begun.set()
        self.outcome = self._interpret(data, is_broken)

    def _interpret(self, data: bytes, is_broken: bool) -> Outcome:
        if self._path == "/v1/audio/speech" and "stream_format" not in self._body:
            header = 44 if self._body["response_format"] == "wav" else 0
            return Outcome(data[header:], "broken" if is_broken else None, not is_broken)
        assert not is_broken and data.endswith(b"\n\n")
        outcome = Outcome()
        for line in data.decode().strip().split("\n\n"):
            text = line.removeprefix("data: ")
            event = {} if text == "[DONE]" else json.loads(text)
            audio = event.get("audio")
            for choice in event.get("choices", ()):
                audio = choice["delta"].get("audio", {}).get("data", audio)
                outcome.is_done |= choice["finish_reason"] == "length"
            outcome.samples += base64.b64decode(audio or "")
            outcome.is_done |= event.get("type") == "speech.audio.done"
            outcome.error = event.get("error", outcome.error)
        return outcome


def all_streaming(server: Server) -> list[Client]:
    """Clients in the middle of their answers."""
    clients = [Client(server, *request, seed) for seed, request in enumerate(REQUESTS)]
    for client in clients:
        assert client.has_begun.wait(PATIENCE)
    return clients


def outcomes(clients: list[Client]) -> list[Outcome]:
    for client in clients:
        client.join(PATIENCE)
        assert not client.is_alive()
    return [client.outcome for client in clients]


@pytest.fixture(scope="module")
def servers(
    request: pytest.FixtureRequest, served_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartedAhead[tuple[str, ...], Server]]:
    def start(more: tuple[str, ...]) -> contextlib.AbstractContextManager[Server]:
        return started_server(served_model, tmp_path_factory.mktemp("server"), *more)

    ahead = StartedAhead(selected(request, "more"), start)
    yield ahead
    ahead.close()


@pytest.fixture
def server(
    servers: StartedAhead[tuple[str, ...], Server], request: pytest.FixtureRequest
) -> Iterator[Server]:
    """A server with a test's options `more`; the next test's one starts beside it."""
    with servers.take(request.node.nodeid) as server:
        wait_until_up(server)
        yield server


@pytest.fixture(scope="module")
def kept() -> list[Outcome]:
    return []


@pytest.fixture
def whole(server: Server, kept: list[Outcome]) -> list[Outcome]:
    """What clients get when nothing interrupts them; of the first server, as all have one model."""
    if not kept:
        kept += outcomes(all_streaming(server))
        assert [len(outcome.samples) for outcome in kept] == [SAMPLES_BYTES] * len(REQUESTS)
        assert all(outcome.is_done and outcome.error is None for outcome in kept)
    return kept


def assert_nothing_is_left(processes: list[psutil.Process]) -> None:
    _, alive = psutil.wait_procs(processes, PATIENCE)
    assert not alive


@pytest.mark.parametrize(
    ("number", "more"),
    [
        pytest.param(signal.SIGTERM, (PATIENT,), marks=pytest.mark.nightly),
        (signal.SIGINT, (PATIENT, "--api-server-count=2")),
        pytest.param(
            signal.SIGTERM, (PATIENT, "--data-parallel-size=2"), marks=pytest.mark.nightly
        ),
    ],
    ids=["one server", "two API servers", "data parallel"],
)
def test_what_is_in_flight_is_finished_and_new_requests_are_turned_away(
    number: signal.Signals, more: tuple[str, ...], server: Server, whole: list[Outcome]
) -> None:
    processes = psutil.Process(server.process.pid).children(recursive=True)
    clients = all_streaming(server)
    server.process.send_signal(number)
    body = json.dumps({"input": TEXT}).encode()
    for path, data in (("/health", None), ("/v1/audio/speech", body), ("/v1/models", None)):
        # The signal takes its way, to each of the servers.
        while (answer := raw(server, path, data))[0] == 200:
            pass
        assert answer[0] == 503 and int(answer[1]["retry-after"]) > 0
        assert json.loads(answer[2])["error"]["code"] == 503
    assert server.request("/metrics")[0] == 200
    for outcome, expected in zip(outcomes(clients), whole, strict=True):
        assert outcome.is_done and outcome.error is None
        assert len(outcome.samples) == SAMPLES_BYTES
        assert_begins_with(expected.samples, outcome.samples)
    assert server.process.wait(PATIENCE) == 0
    assert_nothing_is_left(processes)


def raw(server: Server, path: str, data: bytes | None) -> tuple[int, Any, bytes]:
    host, port = server.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
    headers = {"authorization": f"Bearer {API_KEY}", "content-type": "application/json"}
    connection.request("GET" if data is None else "POST", path, data, headers)
    response = connection.getresponse()
    try:
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def assert_begins_with(expected: bytes, samples: bytes) -> None:
    """Equal but for the rounding of 16-bit samples, which depends on who is decoded together."""
    count = len(samples) // 2
    found, whole = np.frombuffer(samples, "<i2", count), np.frombuffer(expected, "<i2")
    assert count <= len(whole)
    assert np.abs(found.astype(int) - whole[:count]).max() <= 1


def assert_ended_with(found: list[Outcome], whole: list[Outcome], code: int) -> None:
    """Each client has the begin of its audio, and was told that this is not all."""
    for (path, body), outcome, expected in zip(REQUESTS, found, whole, strict=True):
        assert not outcome.is_done, (path, body)
        assert outcome.samples
        assert_begins_with(expected.samples, outcome.samples)
        is_file = path == "/v1/audio/speech" and "stream_format" not in body
        assert outcome.error == "broken" if is_file else outcome.error["code"] == code


@pytest.mark.parametrize(
    ("more", "num_signals"),
    [
        (("--shutdown-timeout=0",), 1),
        pytest.param((PATIENT, "--api-server-count=2"), 2, marks=pytest.mark.nightly),
    ],
    ids=["timeout", "second signal to two API servers"],
)
def test_what_is_not_finished_ends_with_an_error(
    more: tuple[str, ...], num_signals: int, server: Server, whole: list[Outcome]
) -> None:
    processes = psutil.Process(server.process.pid).children(recursive=True)
    stalled = stalled_client(server)
    clients = all_streaming(server)
    server.process.send_signal(signal.SIGTERM)
    if num_signals == 2:
        while server.request("/health", key=None)[0] == 200:
            pass
        server.process.send_signal(signal.SIGINT)
    assert_ended_with(outcomes(clients), whole, 503)
    assert server.process.wait(PATIENCE) == 0
    assert_nothing_is_left(processes)
    stalled.close()


def stalled_client(server: Server) -> http.client.HTTPConnection:
    """A client that reads nothing of an answer."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=PATIENCE)
    headers = {"authorization": f"Bearer {API_KEY}", "content-type": "application/json"}
    body = json.dumps(PCM | {"max_tokens": NUM_TOKENS})
    connection.request("POST", "/v1/audio/speech", body, headers)
    return connection


@pytest.mark.parametrize(
    "more",
    [(), pytest.param(("--api-server-count=2",), marks=pytest.mark.nightly)],
    ids=["one", "two API servers"],
)
def test_a_server_whose_engine_is_killed_leaves_with_an_error(
    more: tuple[str, ...], server: Server, whole: list[Outcome]
) -> None:
    processes = psutil.Process(server.process.pid).children(recursive=True)
    engine = next(p for p in processes if "EngineCore" in " ".join([p.name(), *p.cmdline()]))
    clients = all_streaming(server)
    engine.kill()
    # Only the process that started the engine knows why requests end.
    assert_ended_with(outcomes(clients), whole, 503 if more else 500)
    assert server.process.wait(PATIENCE) not in (0, None)
    assert_nothing_is_left(processes)
