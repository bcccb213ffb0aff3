# SPDX-License-Identifier: Apache-2.0
"""A session of /v1/audio/speech/stream whose engine is made up: what is said in which order, to
clients that cancel, stall and leave too."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from fastapi import FastAPI, WebSocket
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.testclient import TestClient, WebSocketDenialResponse

from tests.entrypoints.test_generation import generation, output
from vllm.entrypoints.speech.encoding import make_encoder
from vllm.entrypoints.speech.parameters import SpeechInput
from vllm.entrypoints.speech.sentences import NoSplitter, SentenceSplitter
from vllm.entrypoints.speech.server.body import BodyLimits
from vllm.entrypoints.speech.server.endpoints import speech_stream as module
from vllm.entrypoints.speech.server.endpoints.speech_stream import SpeechSession
from vllm.entrypoints.speech.server.lifecycle import Lifecycle
from vllm.entrypoints.speech.server.middleware import SpeechMiddleware
from vllm.entrypoints.speech.server.schemas import MAX_INPUT_CHARACTERS
from vllm.entrypoints.speech.server.service import Generation
from vllm.entrypoints.speech.server.session_messages import MAX_TEXT_CHARACTERS, MESSAGES
from vllm.exceptions import GenerationError
from vllm.unison.frontend.errors import InvalidRequestError

RATE = 16000
PATIENCE = 10
PCM = 2 * 320
"""Bytes of a frame."""
CONFIG = {"type": "session.config", "response_format": "pcm"}
DONE, CANCEL = {"type": "input.done"}, {"type": "input.cancel"}
CLOSE = {"type": "session.close"}


def text(said: str) -> dict[str, str]:
    return {"type": "input.text", "text": said}


class Request:
    """A request in the engine: a frame for each character of its text, as soon as it may go on."""

    def __init__(self, asked: SpeechInput, may_go_on: asyncio.Event) -> None:
        self.asked, self._may_go_on = asked, may_go_on
        self.is_over = self.was_left = False

    async def generate(self) -> AsyncGenerator[Any, None]:
        try:
            yield output(tokens=[1])
            for _ in self.asked.text or "":
                await self._may_go_on.wait()
                await asyncio.sleep(0)
                yield output(tokens=[301], frames=1)
            yield output(finish_reason="length")
            self.is_over = True
        except (GeneratorExit, asyncio.CancelledError):
            self.was_left = True
            raise


class Service:
    """What a session asks of the server's service."""

    sample_rate, num_channels = RATE, 1

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        self.engine_client = SimpleNamespace(errored=False)
        self.errors: dict[str, Exception] = {}

    @property
    def said(self) -> list[str | None]:
        return [request.asked.text for request in self.requests]

    def check_model(self, model: str | None) -> str:
        return "speech"

    check = check_model

    def plan(self, request: SpeechInput) -> None:
        if request.voice == "kal":
            raise InvalidRequestError("voice must be one of ['slt'], not 'kal'")

    def encoder(self, audio_format: str, is_whole: bool = False) -> Any:
        return make_encoder(audio_format, self.sample_rate, is_whole, self.num_channels)

    async def start(self, raw_request: Any, prefix: str, request: SpeechInput) -> Generation:
        if error := self.errors.get(request.text or ""):
            raise error
        self.requests.append(Request(request, self.may_go_on))
        made = generation(self.requests[-1])  # type: ignore[arg-type]
        made.request_id = f"{prefix}-x"
        await made.begin()
        return made


class Client:
    """The other end of a connection, which takes messages unless it stalls."""

    def __init__(self) -> None:
        self._to_server: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._from_server: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.reads = asyncio.Event()
        self.reads.set()
        self.is_gone = False
        self.send_raw({"type": "websocket.connect"})

    def send_raw(self, message: dict[str, Any]) -> None:
        self._to_server.put_nowait(message)

    def send(self, *messages: dict[str, Any]) -> None:
        for message in messages:
            self.send_raw({"type": "websocket.receive", "text": json.dumps(message)})

    def leave(self) -> None:
        self.is_gone = True
        self.send_raw({"type": "websocket.disconnect", "code": 1006})

    async def receive(self) -> dict[str, Any]:
        return await self._to_server.get()

    async def take(self, message: Any) -> None:
        await self.reads.wait()
        if self.is_gone:
            raise OSError
        self._from_server.put_nowait(message)

    async def next(self) -> Any:
        """The next event, bytes or code of a close."""
        message = await self._from_server.get()
        if message["type"] == "websocket.close":
            return message["code"]
        if message["type"] != "websocket.send":
            return await self.next()
        return message["bytes"] if "bytes" in message else json.loads(message["text"])

    async def until(self, kind: str) -> list[Any]:
        """Events up to one of a kind, and between them the lengths of the audio that came."""
        events: list[Any] = []
        while not events or not isinstance(events[-1], dict) or events[-1]["type"] != kind:
            item = await self.next()
            if isinstance(item, bytes):
                if not events or not isinstance(events[-1], int):
                    events.append(0)
                events[-1] += len(item)
            else:
                assert isinstance(item, dict), item
                events.append(item)
        return events


class Fixture:
    """A session and both its ends."""

    def __init__(self) -> None:
        self.client, self.service, self.lifecycle = Client(), Service(), Lifecycle()
        websocket = WebSocket(
            {"type": "websocket", "headers": [], "path": "/", "query_string": b""},
            self.client.receive,
            self.client.take,
        )
        service: Any = self.service
        self.session = SpeechSession(websocket, service, self.lifecycle, BodyLimits())


@contextlib.asynccontextmanager
async def connected(config: dict[str, Any] | None = CONFIG) -> AsyncIterator[Fixture]:
    made = Fixture()
    running = asyncio.create_task(made.session.run())
    if config is not None:
        made.client.send(config)
    try:
        yield made
        made.client.leave()
        made.client.reads.set()
        await running
    finally:
        running.cancel()


def run(test: Callable[[Fixture], Awaitable[None]], config: dict[str, Any] | None = CONFIG) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE), connected(config) as made:
            await test(made)

    asyncio.run(main())


def kinds(events: list[Any]) -> list[Any]:
    return [event if isinstance(event, int) else event["type"] for event in events]


def test_sentences_are_spoken_in_order_each_with_its_place() -> None:
    async def test(made: Fixture) -> None:
        made.client.send(text("Alpha. Bra"), text("vo! T"), DONE)
        events = await made.client.until("session.done")
        assert kinds(events) == [
            *("audio.start", 6 * PCM, "audio.done"),
            *("audio.start", 6 * PCM, "audio.done"),
            *("audio.start", PCM, "audio.done", "session.done"),
        ]
        starts = [e for e in events if isinstance(e, dict) and e["type"] == "audio.start"]
        assert [start["sentence_text"] for start in starts] == ["Alpha.", "Bravo!", "T"]
        assert starts[1] == {
            "type": "audio.start",
            "utterance_index": 0,
            "sentence_index": 1,
            "sentence_text": "Bravo!",
            "format": "pcm",
            "sample_rate": RATE,
            "channels": 1,
            "request_id": "speech-0-1-x",
        }
        done = events[-2]
        assert (done["total_bytes"], done["error"]) == (PCM, False)
        assert done["usage"]["output_token_details"]["audio_tokens"] == 1
        assert events[-1] == {"type": "session.done", "utterance_index": 0, "total_sentences": 3}
        # The session goes on, with the configuration that it has; an utterance may be empty.
        made.client.send(DONE, text("More"), DONE)
        assert (await made.client.until("session.done"))[-1]["total_sentences"] == 0
        events = await made.client.until("session.done")
        assert (events[0]["utterance_index"], events[0]["sentence_index"]) == (2, 0)
        assert made.service.said == ["Alpha.", "Bravo!", "T", "More"]

    run(test)


def test_a_sentence_is_spoken_when_the_next_begins() -> None:
    async def test(made: Fixture) -> None:
        made.client.send(text("Alpha. T"))
        assert kinds(await made.client.until("audio.done")) == [
            "audio.start",
            6 * PCM,
            "audio.done",
        ]
        assert made.service.said == ["Alpha."]

    run(test)


def test_an_utterance_may_be_spoken_as_one_text() -> None:
    async def test(made: Fixture) -> None:
        made.client.send(text("Alpha. B"), text("ravo."), DONE)
        assert len(await made.client.until("session.done")) == 4
        assert made.service.said == ["Alpha. Bravo."]

    run(test, CONFIG | {"split_granularity": "none"})


@pytest.mark.parametrize("name", ["wav", "flac", "opus"])
@pytest.mark.parametrize("stream_audio", [True, False])
def test_each_sentence_is_a_file(name: str, stream_audio: bool) -> None:
    async def test(made: Fixture) -> None:
        made.client.send(text("Alpha. Bravo."), DONE)
        for num_frames in (6, 6):
            start = await made.client.next()
            assert start["sample_rate"] == RATE
            pieces = []
            while isinstance(piece := await made.client.next(), bytes):
                pieces.append(piece)
            expected = make_encoder(name, RATE, is_whole=not stream_audio)
            samples = output(frames=1).outputs[0].audio.samples
            file = b"".join(expected.encode(samples) for _ in range(num_frames))
            assert b"".join(pieces) == file + expected.finish()
            assert stream_audio or len(pieces) == 1
            assert piece["total_bytes"] == sum(map(len, pieces))

    run(test, CONFIG | {"response_format": name, "stream_audio": stream_audio})


def test_what_comes_too_early_or_is_wrong_is_refused_by_name() -> None:
    async def test(made: Fixture) -> None:
        async def refused(message: Any, param: str | None, *words: str) -> None:
            if isinstance(message, (str, bytes)):
                kind = "text" if isinstance(message, str) else "bytes"
                made.client.send_raw({"type": "websocket.receive", kind: message})
            else:
                made.client.send(message)
            event = await made.client.next()
            assert (event["type"], event["error"]["param"]) == ("error", param), event
            assert event["message"] == event["error"]["message"]
            assert all(word in event["message"] for word in words), event

        await refused(text("Alpha."), "type", "session.config must come before input.text")
        await refused(CONFIG | {"voice": "kal"}, "voice", "must be one of ['slt']")
        await refused(CONFIG | {"top_p": 0}, "top_p", "greater than 0")
        await refused(CONFIG | {"stream_format": "sse"}, "stream_format", "'audio'")
        await refused(CONFIG | {"stream": False}, "stream", "True")
        await refused(CONFIG | {"split_granularity": "clause"}, "split_granularity", "'sentence'")
        await refused(CONFIG | {"input": "hi"}, "input", "no field")
        await refused(CONFIG | {"ref_text": "hi"}, "ref_text", "beside ref_audio")
        await refused(text("Alpha."), "type", "session.config must come")
        made.client.send(CONFIG)
        await refused({"type": "input.text"}, "text", "required")
        await refused({"type": "input.text", "text": 1}, "text", "must be text")
        await refused(text("x" * (MAX_TEXT_CHARACTERS + 1)), "text", f"{MAX_TEXT_CHARACTERS}")
        await refused({"type": "input.done", "x": 1}, "x", "no field")
        await refused({"type": "input.flush"}, "type", *MESSAGES)
        await refused({"text": "hi"}, "type", *MESSAGES)
        await refused("[]", None, "message must be an object")
        await refused("{", None, "message must be JSON")
        await refused('{"type": "input.done", "type": 1}', "type", "once")
        await refused(b"{}", None, "must be text, not bytes")
        await refused('{"type": "' + "x" * 2**18 + '"}', None, "262144 bytes")
        await refused('{"text": "\\ud800", "type": "input.text"}', "text", "Unicode")
        made.client.send(text("Alpha. T"))
        await made.client.until("audio.done")
        await refused(CONFIG, "type", "between utterances")
        made.client.send(DONE, CONFIG | {"voice": "slt"}, text("Charlie."), DONE)
        await made.client.until("session.done")
        await made.client.until("session.done")
        assert made.service.said == ["Alpha.", "T", "Charlie."]
        assert [request.asked.voice for request in made.service.requests] == [None, None, "slt"]

    run(test, None)


def test_the_rules_of_a_text_are_those_of_a_request() -> None:
    async def test(made: Fixture) -> None:
        made.client.send(text("x" * (MAX_INPUT_CHARACTERS + 1)), text("y"), DONE)
        start, error, done, *rest = await made.client.until("session.done")
        assert (start["sentence_index"], done["error"]) == (0, True)
        assert (error["sentence_index"], error["error"]["param"]) == (0, "text")
        assert f"at most {MAX_INPUT_CHARACTERS} characters" in error["message"]
        assert kinds(rest) == ["audio.start", PCM, "audio.done", "session.done"]

    run(test)


def test_a_sentence_that_fails_is_told_and_the_next_is_spoken() -> None:
    async def test(made: Fixture) -> None:
        made.service.errors["Bravo."] = InvalidRequestError("text must fit")
        made.service.errors["Charlie."] = GenerationError("the codec failed")
        made.client.send(text("Alpha. Bravo. Charlie. Delta."), DONE)
        events = await made.client.until("session.done")
        assert kinds(events) == [
            *("audio.start", 6 * PCM, "audio.done"),
            *("audio.start", "error", "audio.done") * 2,
            *("audio.start", 6 * PCM, "audio.done", "session.done"),
        ]
        refused, failed = (e for e in events if isinstance(e, dict) and e["type"] == "error")
        assert (refused["error"]["code"], refused["error"]["param"]) == (400, "text")
        assert (failed["error"]["code"], failed["sentence_index"]) == (500, 2)

    run(test)


def test_a_dead_engine_ends_the_session() -> None:
    async def test(made: Fixture) -> None:
        made.service.errors["Alpha."] = GenerationError("the engine is dead")
        made.service.engine_client.errored = True
        made.client.send(text("Alpha. Bravo."), DONE)
        assert kinds(await made.client.until("audio.done")) == [
            "audio.start",
            "error",
            "audio.done",
        ]
        assert await made.client.next() == module.INTERNAL_ERROR

    run(test)


def test_cancel_ends_what_is_spoken_and_drops_what_waits() -> None:
    async def test(made: Fixture) -> None:
        made.service.may_go_on.clear()
        made.client.send(text("Alpha. Bravo. "), DONE, text("Charlie. De"))
        assert (await made.client.next())["type"] == "audio.start"
        made.client.send(CANCEL)
        first, *events = [await made.client.next() for _ in range(3)]
        assert (first["type"], first["sentence_index"]) == ("audio.done", 0)
        assert (first["cancelled"], first["error"], first["total_bytes"]) == (True, False, 0)
        assert [(e["type"], e["utterance_index"], e["total_sentences"]) for e in events] == [
            ("session.done", 0, 1),
            ("session.done", 1, 0),
        ]
        assert all(event["cancelled"] for event in events)
        assert made.service.requests[0].was_left and len(made.service.requests) == 1
        made.service.may_go_on.set()
        made.client.send(text("Echo."), DONE)
        events = await made.client.until("session.done")
        assert events[0]["utterance_index"] == 2 and "cancelled" not in events[-1]
        assert made.service.said == ["Alpha.", "Echo."]
        # Nothing to cancel: an utterance ends all the same, so that clients know when.
        made.client.send(CANCEL)
        done = await made.client.next()
        assert (done["type"], done["utterance_index"], done["cancelled"]) == (
            "session.done",
            3,
            True,
        )

    run(test)


def test_a_client_that_leaves_ends_its_request() -> None:
    async def test(made: Fixture) -> None:
        made.service.may_go_on.clear()
        made.client.send(text("Alpha. Bravo."), DONE)
        await made.client.next()

    fixtures = []

    async def kept(made: Fixture) -> None:
        fixtures.append(made)
        await test(made)

    run(kept)
    (request,) = fixtures[0].service.requests
    assert request.was_left and not request.is_over


def test_of_a_client_that_stalls_no_more_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence at a time is made; and the session ends when nothing is read for long."""

    async def main() -> None:
        async with asyncio.timeout(PATIENCE):
            await stall(Fixture())

    async def stall(made: Fixture) -> None:
        running = asyncio.create_task(made.session.run())
        made.client.send(CONFIG, text("Alpha. Bravo. Charlie. Delta."), DONE)
        await made.client.until("audio.done")
        made.client.reads.clear()
        # What is read now is of the second sentence, wherever that is.
        for _ in range(1000):
            await asyncio.sleep(0)
        assert made.service.said == ["Alpha.", "Bravo."]
        made.client.reads.set()
        await made.client.until("session.done")
        assert made.service.said == ["Alpha.", "Bravo.", "Charlie.", "Delta."]
        monkeypatch.setattr(module, "IDLE_SECONDS", 0.01)
        made.client.send(text("Echo. Foxtrot."))
        made.client.reads.clear()
        await running
        assert made.service.said == ["Alpha.", "Bravo.", "Charlie.", "Delta.", "Echo."]
        assert made.service.requests[-1].was_left

    asyncio.run(main())


def test_long_pieces_of_audio_come_in_messages_of_bounded_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_FRAME_BYTES", 100)

    async def test(made: Fixture) -> None:
        made.client.send(text("On"), DONE)
        await made.client.next()
        sizes = [len(await made.client.next()) for _ in range(14)]
        assert sizes == [100] * 6 + [40] + [100] * 6 + [40]

    run(test)


def test_a_session_in_which_nothing_happens_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.01)

    async def test(made: Fixture) -> None:
        event = await made.client.next()
        assert event["error"]["code"] == 408 and "0.01 seconds" in event["message"]
        assert await made.client.next() == module.NORMAL

    run(test)


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING_CHARACTERS", 30)
    monkeypatch.setattr(module, "MAX_WAITING_UTTERANCES", 2)

    async def test(made: Fixture) -> None:
        made.service.may_go_on.clear()
        made.client.send(text("Alpha. Bravo. "))
        await made.client.next()
        made.client.send(text("Charlie. Delta. Echo. Fox."))
        error = await made.client.next()
        assert error["error"]["param"] == "text" and "at most 22 characters" in error["message"]
        made.client.send(text("Charlie. Delta."), DONE, DONE, DONE)
        error = await made.client.next()
        assert "2 utterances are not spoken" in error["message"]
        made.service.may_go_on.set()
        await made.client.until("session.done")
        assert (await made.client.until("session.done"))[-1]["utterance_index"] == 1
        assert made.service.said == ["Alpha.", "Bravo.", "Charlie.", "Delta."]
        made.client.send(text("x" * 30), DONE)
        assert (await made.client.until("session.done"))[-1]["total_sentences"] == 1

    run(test)


def test_closing_says_the_rest_first() -> None:
    async def test(made: Fixture) -> None:
        made.client.send(text("Alpha. Bravo"), CLOSE, DONE)
        events = await made.client.until("session.done")
        (error,) = (e for e in events if isinstance(e, dict) and e["type"] == "error")
        assert "input.cancel" in error["message"]
        assert await made.client.next() == module.NORMAL
        assert made.service.said == ["Alpha.", "Bravo"]

    run(test)


def test_a_session_that_closes_may_be_cancelled() -> None:
    async def test(made: Fixture) -> None:
        made.service.may_go_on.clear()
        made.client.send(text("Alpha. Bravo"), CLOSE)
        await made.client.next()
        made.client.send(CANCEL)
        assert kinds(await made.client.until("session.done")) == ["audio.done", "session.done"]
        assert await made.client.next() == module.NORMAL

    run(test)


@pytest.mark.parametrize("is_idle", [True, False])
def test_a_server_that_leaves_says_the_sentences_that_are_complete(is_idle: bool) -> None:
    async def test(made: Fixture) -> None:
        if not is_idle:
            made.service.may_go_on.clear()
            made.client.send(text("Alpha. Bravo. Char"))
            await made.client.next()
        draining = asyncio.create_task(made.lifecycle.drain(60, lambda: asyncio.sleep(0)))
        for _ in range(10):
            await asyncio.sleep(0)
        made.client.send(text("lie. Delta."))
        made.service.may_go_on.set()
        events = await made.client.until("error")
        assert events[-1]["error"]["code"] == 503 and "about to leave" in events[-1]["message"]
        assert await made.client.next() == module.SERVICE_RESTART
        assert made.service.said == ([] if is_idle else ["Alpha.", "Bravo."])
        await draining

    run(test)


def test_a_server_that_leaves_takes_no_new_sessions() -> None:
    lifecycle = Lifecycle()
    app = FastAPI()
    app.add_middleware(SpeechMiddleware, lifecycle=lifecycle, limits={}, reads_json=frozenset())
    seen: list[int] = []

    @app.websocket("/stream")
    async def stream(websocket: WebSocket) -> None:
        seen.append(lifecycle.in_flight)
        await websocket.accept()
        await websocket.close()

    client = TestClient(app)
    with client.websocket_connect("/stream"):
        pass
    assert (seen, lifecycle.in_flight) == ([1], 0)
    asyncio.run(lifecycle.drain(30, lambda: None))
    with (
        pytest.raises(WebSocketDenialResponse) as caught,
        client.websocket_connect("/stream"),
    ):
        pass
    assert caught.value.status_code == 503 and seen == [1]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
FIELDS = ["text", "voice", "seed", "response_format", "stream_audio", "split_granularity", "model"]
MESSAGE = st.one_of(
    st.sampled_from([CONFIG, DONE, CANCEL, text("Alpha. T"), text(" wo."), text("")]).map(
        json.dumps
    ),
    st.builds(
        lambda kind, more: json.dumps({"type": kind} | more),
        st.sampled_from([*MESSAGES, "other"]) | JSON,
        st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), JSON, max_size=3),
    ).filter(lambda data: "session.close" not in data),
    JSON.map(json.dumps),
    st.text(max_size=20),
    st.binary(max_size=20),
)


@settings(max_examples=200, derandomize=True)
@given(st.lists(MESSAGE, max_size=12))
def test_whatever_is_sent_the_session_answers_and_goes_on(messages: list[str | bytes]) -> None:
    async def test(made: Fixture) -> None:
        for data in messages:
            kind = "text" if isinstance(data, str) else "bytes"
            made.client.send_raw({"type": "websocket.receive", kind: data})
        made.client.send(CANCEL, CONFIG, text("The last one."), DONE)
        while True:
            events = await made.client.until("session.done")
            if made.service.said[-1:] == ["The last one."] and "cancelled" not in events[-1]:
                break
        codes = {e["error"]["code"] for e in events if isinstance(e, dict) and "error" in e["type"]}
        assert codes <= {400}

    run(test, None)


def test_splitting_keeps_all_that_is_said() -> None:
    said = "Dr. Who came. He was late!  Then, what?\n\nnothing **at all**. And 3.5 more"
    for splitter, expected in (
        (
            SentenceSplitter(100),
            ["Dr. Who came.", "He was late!", "Then, what?", "nothing at all.", "And 3.5 more"],
        ),
        (NoSplitter(100), [said]),
    ):
        for size in (1, 7, len(said)):
            found: list[str] = []
            for begin in range(0, len(said), size):
                found += splitter.push(said[begin : begin + size])
            assert [*found, *splitter.finish()] == expected
            assert splitter.num_waiting == 0 and not [*splitter.finish()]
