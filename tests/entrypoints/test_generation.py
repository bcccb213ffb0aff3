# SPDX-License-Identifier: Apache-2.0
"""A request's outputs on their way to the client: counted, failed, and left."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import wave
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any, TypeVar

import numpy as np
import pytest
import soundfile

from vllm.entrypoints.speech.encoding import make_encoder, pcm16
from vllm.entrypoints.speech.server.endpoints.chat import ChatAnswer
from vllm.entrypoints.speech.server.endpoints.speech import (
    encoded_pieces,
    speech_events,
    whole_file,
)
from vllm.entrypoints.speech.server.endpoints.transcript import Transcript
from vllm.entrypoints.speech.server.endpoints.transcriptions import transcription_events
from vllm.entrypoints.speech.server.service import Generation, Usage
from vllm.entrypoints.speech.server.sse import DONE, event, event_stream
from vllm.exceptions import GenerationError
from vllm.unison.messages.streams import AudioOutput
from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.spec import SpeechSpec
from vllm.unison.testing.random_checkpoint import FIRST_TEXT, stream_layout
from vllm.unison.upstream import RetryableRequestError

SPEC = SpeechSpec(StreamLayout.from_dict(stream_layout(3)))
RATE = 16000
Made = TypeVar("Made")


def output(
    text: str = "",
    tokens: Sequence[int] = (),
    frames: int | None = None,
    finish_reason: str | None = None,
    stop_reason: str | None = None,
) -> Any:
    audio = None
    if frames is not None:
        samples = np.full(320 * frames, 0.25, np.float32)
        audio = AudioOutput(samples, RATE, np.zeros((frames, 3), np.int32))
    completion = SimpleNamespace(
        text=text,
        token_ids=list(tokens),
        audio=audio,
        finish_reason=finish_reason,
        stop_reason=stop_reason,
    )
    return SimpleNamespace(outputs=[completion])


class Engine:
    """Yields outputs, and notes whether it was left before the end."""

    def __init__(self, *outputs: Any) -> None:
        self._outputs = outputs
        self.was_left = False

    async def generate(self) -> AsyncGenerator[Any, None]:
        try:
            for item in self._outputs:
                await asyncio.sleep(0)
                yield item
        except GeneratorExit:
            self.was_left = True
            raise


def generation(engine: Engine) -> Generation:
    return Generation(engine.generate(), "speech-1", SPEC, Usage(prompt_tokens=7))


async def begun(engine: Engine) -> Generation:
    made = generation(engine)
    await made.begin()
    return made


def transcript(*generations: Generation) -> Transcript:
    return Transcript(generations, [1.5] * len(generations))


async def collect(items: AsyncIterator[Made]) -> list[Made]:
    return [item async for item in items]


def events_of(run: Callable[[], Awaitable[list[str]]]) -> list[Any]:
    async def main() -> list[str]:
        return await run()

    texts = asyncio.run(main())
    return [text if text == "[DONE]" else json.loads(text) for text in texts]


FIRST = output(tokens=[300, FIRST_TEXT], text="a")
MORE = output(tokens=[301, 302], frames=2)
LAST = output(tokens=[1], text="b", frames=1, finish_reason="stop")
FAILED = output(finish_reason="error", stop_reason="the codec failed")


def test_usage_counts_tokens_frames_and_seconds() -> None:
    async def run() -> Usage:
        made = await begun(Engine(FIRST, MORE, LAST))
        assert [completion.text async for completion in made] == ["a", "", "b"]
        return made.usage

    usage = asyncio.run(run())
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (7, 5, 12)
    assert (usage.text_tokens, usage.frames) == (1, 3)
    assert usage.seconds == pytest.approx(3 * 0.02)


def in_stereo(frames: int, seed: int, finish_reason: str | None = None) -> tuple[Any, np.ndarray]:
    """An output with stereo, and its samples."""
    samples = np.random.default_rng(seed).uniform(-1, 1, (320 * frames, 2)).astype(np.float32)
    made = output(tokens=[301] * frames, finish_reason=finish_reason)
    made.outputs[0].audio = AudioOutput(samples, RATE, np.zeros((frames, 6), np.int32))
    return made, samples


def test_stereo_on_every_way_out() -> None:
    """Both channels, streamed, whole, as events and in chat; and a frame is not two seconds'."""
    (first, left_over), (last, rest) = in_stereo(2, 1), in_stereo(3, 2, "stop")
    joined = np.concatenate([left_over, rest])
    expected = pcm16(joined)
    assert np.frombuffer(expected, "<i2")[1::2].tolist() == (
        np.frombuffer(pcm16(joined[:, 1]), "<i2").tolist()
    )

    def encoder(name: str, is_whole: bool = False) -> Any:
        return make_encoder(name, RATE, is_whole, num_channels=2)

    async def run() -> None:
        made = await begun(Engine(first, last))
        assert b"".join(await collect(encoded_pieces(made, encoder("pcm")))) == expected
        assert made.usage.frames == 5 and made.usage.seconds == pytest.approx(5 * 0.02)
        made = await begun(Engine(first, last))
        file = await whole_file(made, encoder("wav", is_whole=True))
        with wave.open(io.BytesIO(file)) as read:
            assert (read.getnchannels(), read.getnframes()) == (2, 1600)
            assert read.readframes(1600) == expected
        made = await begun(Engine(first, last))
        texts = await collect(speech_events(encoded_pieces(made, encoder("pcm")), made))
        events = [json.loads(text) for text in texts]
        sent = b"".join(base64.b64decode(e["audio"]) for e in events if "audio" in e)
        assert sent == expected
        assert events[-1]["usage"]["output_token_details"]["audio_seconds"] == pytest.approx(0.1)
        answer = ChatAnswer("music", await begun(Engine(first, last)), encoder("flac", True))
        data = base64.b64decode((await answer.whole())["choices"][0]["message"]["audio"]["data"])
        read_back, rate = soundfile.read(io.BytesIO(data), dtype="int16")
        assert rate == RATE and read_back.astype("<i2").tobytes() == expected
        answer = ChatAnswer("music", await begun(Engine(first, last)), encoder("pcm"))
        chunks = [json.loads(t) for t in await collect(answer.chunks(False)) if t != DONE]
        deltas = [chunk["choices"][0]["delta"].get("audio", {}) for chunk in chunks]
        assert b"".join(base64.b64decode(delta.get("data", "")) for delta in deltas) == expected

    asyncio.run(run())


def test_a_request_that_fails_at_once_is_an_error_before_the_answer() -> None:
    with pytest.raises(GenerationError, match="the codec failed"):
        asyncio.run(begun(Engine(FAILED)))


def test_a_file_that_fails_later_is_broken_off() -> None:
    pieces: list[bytes] = []

    async def run() -> None:
        made = await begun(Engine(FIRST, MORE, FAILED))
        async for piece in encoded_pieces(made, make_encoder("pcm", RATE)):
            pieces.append(piece)

    with pytest.raises(GenerationError, match="the codec failed"):
        asyncio.run(run())
    assert b"".join(pieces) == pcm16(np.full(640, 0.25, np.float32))


def test_events_of_speech() -> None:
    async def run() -> list[str]:
        made = await begun(Engine(FIRST, MORE, LAST))
        return await collect(speech_events(encoded_pieces(made, make_encoder("pcm", RATE)), made))

    *deltas, done = events_of(run)
    data = b"".join(base64.b64decode(delta["audio"]) for delta in deltas)
    assert data == pcm16(np.full(960, 0.25, np.float32))
    assert done["usage"]["output_token_details"]["audio_tokens"] == 3


def test_events_end_with_the_failure() -> None:
    async def run() -> list[str]:
        made = await begun(Engine(FIRST, MORE, FAILED))
        return await collect(speech_events(encoded_pieces(made, make_encoder("pcm", RATE)), made))

    *deltas, last = events_of(run)
    assert len(deltas) == 1
    assert (last["error"]["message"], last["error"]["code"]) == ("the codec failed", 500)

    async def transcribe() -> list[str]:
        return await collect(transcription_events(transcript(await begun(Engine(FIRST, FAILED)))))

    delta, last = events_of(transcribe)
    assert delta == {"type": "transcript.text.delta", "delta": "a"}
    assert last["error"]["code"] == 500


def test_chat_chunks_end_with_the_failure() -> None:
    async def run() -> list[str]:
        answer = ChatAnswer("speech", await begun(Engine(FIRST, FAILED)), None)
        return await collect(answer.chunks(include_usage=True))

    events = events_of(run)
    assert events[-1] == "[DONE]" and events[-2]["error"]["message"] == "the codec failed"
    assert events[1]["choices"][0]["delta"] == {"content": "a"}
    assert all("usage" not in event for event in events[:-1])


def test_chat_gives_text_as_the_transcript_of_audio() -> None:
    async def whole() -> dict[str, Any]:
        answer = ChatAnswer(
            "speech", await begun(Engine(FIRST, MORE, LAST)), make_encoder("pcm", RATE)
        )
        return await answer.whole()

    body = asyncio.run(whole())
    message = body["choices"][0]["message"]
    assert message["content"] is None and message["audio"]["transcript"] == "ab"
    assert base64.b64decode(message["audio"]["data"]) == pcm16(np.full(960, 0.25, np.float32))
    assert body["choices"][0]["finish_reason"] == "stop"

    async def chunks() -> list[str]:
        answer = ChatAnswer(
            "speech", await begun(Engine(FIRST, MORE, LAST)), make_encoder("pcm", RATE)
        )
        return await collect(answer.chunks(include_usage=False))

    audio = [
        event["choices"][0]["delta"].get("audio", {})
        for event in events_of(chunks)
        if event != "[DONE]"
    ]
    assert "".join(delta.get("transcript", "") for delta in audio) == "ab"
    data = b"".join(base64.b64decode(delta.get("data", "")) for delta in audio)
    assert data == pcm16(np.full(960, 0.25, np.float32))


@pytest.mark.parametrize("count", [1, 2])
def test_leaving_an_answer_ends_the_request(count: int) -> None:
    engine = Engine(FIRST, MORE, MORE, LAST)

    async def run() -> None:
        made = await begun(engine)
        iterator = aiter(made)
        for _ in range(count):
            await anext(iterator)
        await iterator.aclose()  # type: ignore[attr-defined]

    asyncio.run(run())
    assert engine.was_left


def test_an_answer_that_never_began_to_be_sent_ends_the_request() -> None:
    engine = Engine(FIRST, MORE, LAST)

    async def run() -> None:
        made = await begun(engine)
        del made
        while not engine.was_left:
            await asyncio.sleep(0)

    asyncio.run(run())
    assert engine.was_left


def failed(reason: str | None) -> Any:
    return output(finish_reason=reason, frames=1)


ENDS = [("abort", 503), ("repetition", 500), ("something new", 500), (None, 500)]
"""Ends that are no success, and the status that they have."""


@pytest.mark.parametrize(("reason", "status"), ENDS)
def test_only_stop_and_length_are_a_success(reason: str | None, status: int) -> None:
    """On every route, whole and streamed."""

    async def file() -> list[bytes]:
        made = await begun(Engine(FIRST, MORE, failed(reason)))
        return await collect(encoded_pieces(made, make_encoder("pcm", RATE)))

    async def whole() -> dict[str, Any]:
        made = await begun(Engine(FIRST, MORE, failed(reason)))
        return await ChatAnswer("speech", made, make_encoder("wav", RATE)).whole()

    async def text() -> list[str]:
        made = await begun(Engine(FIRST, failed(reason)))
        return [completion.text async for completion in made]

    for run in (file, whole, text):
        with pytest.raises(GenerationError) as caught:
            asyncio.run(run())
        assert caught.value.status_code == status

    async def speech() -> list[str]:
        made = await begun(Engine(FIRST, MORE, failed(reason)))
        return await collect(speech_events(encoded_pieces(made, make_encoder("pcm", RATE)), made))

    async def transcription() -> list[str]:
        return await collect(
            transcription_events(transcript(await begun(Engine(FIRST, failed(reason)))))
        )

    async def chat() -> list[str]:
        made = await begun(Engine(FIRST, MORE, failed(reason)))
        answer = ChatAnswer("speech", made, make_encoder("pcm", RATE))
        return await collect(answer.chunks(include_usage=True))

    for stream in (speech, transcription, chat):
        events = events_of(stream)
        last = events[-2] if stream is chat else events[-1]
        assert last["error"]["code"] == status
        assert not [e for e in events if "done" in str(e).lower() and e != "[DONE]"]


@pytest.mark.parametrize("reason", ["stop", "length"])
def test_success_ends_with_what_says_so(reason: str) -> None:
    last = output(finish_reason=reason, frames=1)

    async def speech() -> list[str]:
        made = await begun(Engine(FIRST, last))
        return await collect(speech_events(encoded_pieces(made, make_encoder("pcm", RATE)), made))

    async def chat() -> list[str]:
        answer = ChatAnswer("speech", await begun(Engine(FIRST, last)), make_encoder("pcm", RATE))
        return await collect(answer.chunks(include_usage=False))

    assert events_of(speech)[-1]["type"] == "speech.audio.done"
    assert events_of(chat)[-2]["choices"][0]["finish_reason"] == reason


def test_a_request_that_is_aborted_at_once_may_be_sent_again() -> None:
    with pytest.raises(RetryableRequestError, match="send it again"):
        asyncio.run(begun(Engine(output(finish_reason="abort"))))


class LocalLLM:
    """Stands for the engine of the command line."""

    def __init__(self, *outputs: Any) -> None:
        self._outputs = list(outputs)
        self.renderer = SimpleNamespace(render_cmpl=lambda prompts: prompts)
        self.aborted: list[str] = []
        self.model_config = None

    def add_request(self, request_id: str, prompt: Any, params: Any) -> str:
        return request_id

    def has_unfinished_requests(self) -> bool:
        return bool(self._outputs)

    def step(self) -> list[Any]:
        return [self._outputs.pop(0)]

    def abort_request(self, request_ids: list[str], internal: bool) -> None:
        self.aborted += request_ids


def spoken(monkeypatch: pytest.MonkeyPatch, *outputs: Any) -> tuple[LocalLLM, list[Any]]:
    from vllm.entrypoints.speech.cli import local
    from vllm.entrypoints.speech.parameters import SpeechInput

    monkeypatch.setattr(local, "plan_request", lambda *given, **options: ({"prompt": ""}, None))
    monkeypatch.setattr(local, "parse_model_prompt", lambda config, prompt: prompt)
    monkeypatch.setattr(local, "RequestOutput", SimpleNamespace)
    engine = local.LocalEngine.__new__(local.LocalEngine)
    llm = LocalLLM(*outputs)
    engine._engine = llm  # type: ignore[assignment]
    engine.spec, engine._defaults = SPEC, {}
    return llm, [engine.generate(SpeechInput(modalities=frozenset({"audio"})))]


@pytest.mark.parametrize("reason", [reason for reason, _ in ENDS])
def test_the_command_line_takes_nothing_else_for_a_success(
    reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, (run,) = spoken(monkeypatch, FIRST, MORE, failed(reason))
    with pytest.raises(RuntimeError):
        list(run)
    assert llm.aborted == ["0"]
    _, (run,) = spoken(monkeypatch, FIRST, MORE, LAST)
    assert [completion.text for completion in run] == ["a", "", "b"]


def test_events_are_sent_as_openai_s_clients_read_them() -> None:
    """Byte for byte, one event in each piece, without pings or other lines."""
    sent: list[dict[str, Any]] = []

    async def run() -> None:
        async def events() -> AsyncIterator[str]:
            yield event({"text": "ü\n"})
            yield DONE

        async def receive() -> dict[str, Any]:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "asgi": {"spec_version": "2.3"}}
        await event_stream(events())(scope, receive, send)

    asyncio.run(run())
    start, *pieces = sent
    headers = dict(start["headers"])
    assert headers[b"content-type"] == b"text/event-stream; charset=utf-8"
    assert headers[b"cache-control"] == b"no-store" and headers[b"x-accel-buffering"] == b"no"
    assert [piece["body"] for piece in pieces] == [
        b'data: {"text": "\\u00fc\\n"}\n\n',
        b"data: [DONE]\n\n",
        b"",
    ]
    assert [piece["more_body"] for piece in pieces] == [True, True, False]


@pytest.mark.parametrize("pause", [False, True], ids=["between events", "within one"])
def test_a_client_that_leaves_ends_the_request_of_its_events(pause: bool) -> None:
    engine = Engine(FIRST, MORE, MORE, LAST)

    async def run() -> None:
        made = await begun(engine)
        gone = asyncio.Event()

        async def receive() -> dict[str, Any]:
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            if message.get("body"):
                gone.set()
                if pause:
                    await asyncio.Event().wait()
                await asyncio.sleep(0)

        events = speech_events(encoded_pieces(made, make_encoder("pcm", RATE)), made)
        scope = {"type": "http", "method": "POST", "asgi": {"spec_version": "2.3"}}
        await event_stream(events)(scope, receive, send)
        while not engine.was_left:
            await asyncio.sleep(0)

    asyncio.run(run())
    assert engine.was_left
