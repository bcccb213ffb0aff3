# SPDX-License-Identifier: Apache-2.0
"""WebSocket /v1/audio/speech/stream: text in as it comes, audio out as it is made.

Each sentence is a request of its own, made as POST /v1/audio/speech makes it. One runs at a time,
and the next begins when the client's connection has taken the audio before it: of a client that
does not read, the server holds the rest of a sentence, and makes no more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, replace

from fastapi import WebSocket, WebSocketDisconnect
from pydantic import ValidationError

from vllm.entrypoints.speech.encoding import FORMATS
from vllm.entrypoints.speech.parameters import Recording, SpeechInput
from vllm.entrypoints.speech.sentences import NoSplitter, SentenceSplitter
from vllm.entrypoints.speech.server.body import BodyError, BodyLimits, KiB
from vllm.entrypoints.speech.server.endpoints.speech import (
    encoded_pieces,
    recording_of,
    speech_input,
    token_usage,
    whole_file,
)
from vllm.entrypoints.speech.server.lifecycle import Lifecycle
from vllm.entrypoints.speech.server.schemas import MAX_INPUT_CHARACTERS
from vllm.entrypoints.speech.server.service import Generation, SpeechService
from vllm.entrypoints.speech.server.session_messages import (
    ClientMessage,
    Event,
    InputCancel,
    InputDone,
    InputText,
    SessionConfig,
    SpokenText,
    error_event,
    read_message,
    schema_error,
)
from vllm.logger import init_logger

logger = init_logger(__name__)

MAX_WAITING_CHARACTERS = 65536
MAX_WAITING_UTTERANCES = 64
"""Of a session: what it has been sent and has not begun to speak."""
IDLE_SECONDS = 300.0
"""After which a session ends whose client sends nothing while there is nothing to say, or takes
nothing of what is sent to it. Players that read as they play leave the audio of minutes in the
buffers between."""
CLOSING_SECONDS = 4.0
MAX_FRAME_BYTES = 64 * KiB
"""Of audio in a message: what a connection holds of it beside its buffers is as much."""

NORMAL, INTERNAL_ERROR, SERVICE_RESTART = 1000, 1011, 1012
"""RFC 6455, section 7.4.1, and the registry that it founds."""


class SessionEnd(Exception):
    """The session is over.

    Attributes:
        code: that the connection is closed with; None: the client takes nothing any more.
        error: that the client is told of.
    """

    def __init__(self, code: int | None, error: Exception | None = None) -> None:
        super().__init__(code)
        self.code, self.error = code, error


@dataclass(frozen=True)
class Sentence:
    """A text that is to be spoken.

    Attributes:
        config: how.
        recording: of the voice, if the configuration has one.
        utterance, index: its place.
        text: what is to be said.
    """

    config: SessionConfig
    recording: Recording | None
    utterance: int
    index: int
    text: str

    @property
    def place(self) -> dict[str, int]:
        """As messages name it."""
        return {"utterance_index": self.utterance, "sentence_index": self.index}

    @property
    def input(self) -> SpeechInput:
        """What is asked of the engine."""
        made = speech_input(self.config, self.text, self.recording)
        return replace(made, fields=replace(made.fields, text="text", audio="text"))


@dataclass(frozen=True)
class UtteranceEnd:
    """All sentences of an utterance are before this."""

    utterance: int
    num_sentences: int


@dataclass
class Progress:
    """The sentence that is being spoken."""

    sentence: Sentence
    has_begun: bool = False
    num_bytes: int = 0


class SpeechSession:
    """One connection.

    Args:
        websocket: not accepted yet.
        service: of the server.
        lifecycle: of the server.
        limits: of a message.
    """

    def __init__(
        self,
        websocket: WebSocket,
        service: SpeechService,
        lifecycle: Lifecycle,
        limits: BodyLimits,
    ) -> None:
        self._websocket, self._service = websocket, service
        self._lifecycle, self._limits = lifecycle, limits
        self._config: SessionConfig | None = None
        self._recording: Recording | None = None
        self._splitter: SentenceSplitter | NoSplitter = SentenceSplitter(MAX_INPUT_CHARACTERS)
        self._utterance = self._num_sentences = 0
        self._has_text = self._is_closing = False
        self._queue: asyncio.Queue[Sentence | UtteranceEnd | SessionEnd] = asyncio.Queue()
        self._queued_characters = self._queued_utterances = 0
        self._progress: Progress | None = None
        self._num_begun = 0

    async def run(self) -> None:
        """Serve the connection until it is over."""
        await self._websocket.accept()
        end: SessionEnd | None = None
        try:
            async with asyncio.TaskGroup() as group:
                self._group = group
                self._speaker = group.create_task(self._speak())
                reader = group.create_task(self._read())
                group.create_task(self._leave_when_draining(reader))
        except* SessionEnd as ended:
            (end, *_) = (error for error in ended.exceptions if isinstance(error, SessionEnd))
        except* WebSocketDisconnect:
            pass
        if end is not None and end.code is not None:
            await self._close(end.code, end.error)

    async def _close(self, code: int, error: Exception | None) -> None:
        with contextlib.suppress(TimeoutError, WebSocketDisconnect, RuntimeError):
            async with asyncio.timeout(CLOSING_SECONDS):
                if error is not None:
                    await self._websocket.send_text(json.dumps(error_event(error)))
                await self._websocket.close(code)

    async def _leave_when_draining(self, reader: asyncio.Task[None]) -> None:
        """What has come as whole sentences is spoken; nothing more is read."""
        await self._lifecycle.draining()
        reader.cancel()
        self._queue.put_nowait(self._leaving())

    def _leaving(self) -> SessionEnd:
        message = "the server is about to leave; connect again, to another one"
        return SessionEnd(SERVICE_RESTART, BodyError(message, 503))

    # What comes in.

    async def _read(self) -> None:
        while True:
            try:
                await self._take(read_message(await self._receive(), self._limits))
            except BodyError as error:
                await self._send(error_event(error))

    async def _receive(self) -> str | bytes | None:
        """The text or the bytes of the next message."""
        while True:
            try:
                async with asyncio.timeout(IDLE_SECONDS):
                    message = await self._websocket.receive()
            except TimeoutError:
                if self._progress is not None or not self._queue.empty():
                    continue
                words = f"the session ends: nothing has come for {IDLE_SECONDS:g} seconds"
                raise SessionEnd(NORMAL, BodyError(words, 408)) from None
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect(message.get("code", NORMAL))
            text: str | None = message.get("text")
            return message.get("bytes") if text is None else text

    async def _take(self, message: ClientMessage) -> None:
        if self._is_closing and not isinstance(message, InputCancel):
            raise BodyError("nothing but input.cancel may follow session.close", param="type")
        if isinstance(message, SessionConfig):
            await self._configure(message)
        elif isinstance(message, InputText):
            await self._add(message.text)
        elif isinstance(message, InputDone):
            self._end_utterance()
        elif isinstance(message, InputCancel):
            await self._cancel()
        else:
            if self._has_text:
                self._end_utterance()
            self._is_closing = True
            self._queue.put_nowait(SessionEnd(NORMAL))

    async def _configure(self, config: SessionConfig) -> None:
        if self._has_text:
            words = "session.config must come between utterances; send input.done before it"
            raise BodyError(words, param="type")
        try:
            self._service.check_model(config.model)
            recording = await recording_of(self._service, config)
            # What the model refuses of any text, it refuses now.
            self._service.plan(Sentence(config, recording, 0, 0, "a").input)
        except Exception as error:
            return await self._send(error_event(error))
        self._config, self._recording = config, recording
        made = SentenceSplitter if config.split_granularity == "sentence" else NoSplitter
        self._splitter = made(MAX_INPUT_CHARACTERS)

    async def _add(self, text: str) -> None:
        if self._config is None:
            raise BodyError("session.config must come before input.text", param="type")
        waiting = self._queued_characters + self._splitter.num_waiting
        if waiting + len(text) > MAX_WAITING_CHARACTERS:
            raise BodyError(
                f"text must have at most {MAX_WAITING_CHARACTERS - waiting} characters: "
                f"{waiting} wait to be spoken, and no more than {MAX_WAITING_CHARACTERS} may",
                param="text",
            )
        self._has_text = self._has_text or bool(text)
        for sentence in self._splitter.push(text):
            self._enqueue(sentence)

    def _enqueue(self, text: str) -> None:
        assert self._config is not None
        place = self._utterance, self._num_sentences
        self._queue.put_nowait(Sentence(self._config, self._recording, *place, text))
        self._queued_characters += len(text)
        self._num_sentences += 1

    def _end_utterance(self) -> None:
        if self._queued_utterances >= MAX_WAITING_UTTERANCES:
            words = f"input.done must wait: {MAX_WAITING_UTTERANCES} utterances are not spoken yet"
            raise BodyError(words, param="type")
        for sentence in self._splitter.finish():
            self._enqueue(sentence)
        self._queue.put_nowait(UtteranceEnd(self._utterance, self._num_sentences))
        self._queued_utterances += 1
        self._begin_utterance()

    def _begin_utterance(self) -> None:
        self._utterance += 1
        self._num_sentences, self._has_text = 0, False

    async def _cancel(self) -> None:
        """End the sentence that is being spoken, and all utterances up to here."""
        self._speaker.cancel()
        await asyncio.wait({self._speaker})
        progress, self._progress = self._progress, None
        num_begun, self._num_begun = self._num_begun, 0
        cancelled: list[int] = []
        ends: list[SessionEnd] = []
        while not self._queue.empty():
            item = self._queue.get_nowait()
            if isinstance(item, UtteranceEnd):
                cancelled.append(item.utterance)
            elif isinstance(item, SessionEnd):
                ends.append(item)
        list(self._splitter.finish())
        self._queued_characters = self._queued_utterances = 0
        if not self._is_closing:
            cancelled.append(self._utterance)
            self._begin_utterance()
        if progress is not None and progress.has_begun:
            await self._send(_audio_done(progress) | {"error": False, "cancelled": True})
        for utterance in cancelled:
            await self._send(_session_done(utterance, num_begun) | {"cancelled": True})
            num_begun = 0
        for end in ends:
            self._queue.put_nowait(end)
        self._speaker = self._group.create_task(self._speak())

    # What goes out.

    async def _speak(self) -> None:
        """Say one sentence after another."""
        while True:
            item = await self._queue.get()
            if isinstance(item, SessionEnd):
                raise item
            if isinstance(item, UtteranceEnd):
                self._queued_utterances -= 1
                await self._send(_session_done(item.utterance, item.num_sentences))
                self._num_begun = 0
                continue
            self._queued_characters -= len(item.text)
            self._progress = Progress(item)
            await self._say(self._progress)
            self._progress = None

    async def _say(self, progress: Progress) -> None:
        failure: Exception | None = None
        generation: Generation | None = None
        try:
            generation = await self._start(progress.sentence)
            async with aclosing(generation):
                await self._begin(progress, generation)
                async for piece in self._pieces(progress.sentence, generation):
                    await self._websocket_send(piece)
                    progress.num_bytes += len(piece)
        except (SessionEnd, WebSocketDisconnect):
            raise
        except Exception as error:
            failure = error
            await self._begin(progress, generation)
            await self._send(error_event(error, **progress.sentence.place))
        done = _audio_done(progress) | {"error": failure is not None}
        if generation is not None:
            done["usage"] = token_usage(generation.usage)
        await self._send(done)
        if failure is not None and self._service.engine_client.errored:
            raise SessionEnd(INTERNAL_ERROR)
        if failure is not None and self._lifecycle.is_draining:
            raise self._leaving()

    async def _start(self, sentence: Sentence) -> Generation:
        try:
            SpokenText.model_validate({"text": sentence.text})
        except ValidationError as error:
            raise schema_error(error, {"text": sentence.text}) from None
        self._service.check(sentence.config.model)
        prefix = f"speech-{sentence.utterance}-{sentence.index}"
        return await self._service.start(self._websocket, prefix, sentence.input)

    async def _begin(self, progress: Progress, generation: Generation | None) -> None:
        """Announce a sentence, once."""
        if progress.has_begun:
            return
        sentence, service = progress.sentence, self._service
        name = sentence.config.response_format
        message = {
            "type": "audio.start",
            **sentence.place,
            "sentence_text": sentence.text,
            "format": name,
            "sample_rate": FORMATS[name].rate_for(service.sample_rate),
            "channels": service.num_channels,
        }
        if generation is not None:
            message["request_id"] = generation.request_id
        await self._send(message)
        progress.has_begun = True
        self._num_begun += 1

    async def _pieces(self, sentence: Sentence, generation: Generation) -> AsyncIterator[bytes]:
        """The bytes of a sentence's file, in the messages that carry them."""
        config = sentence.config
        encoder = self._service.encoder(config.response_format, is_whole=not config.stream_audio)
        if not config.stream_audio:
            yield await whole_file(generation, encoder)
            return
        async for piece in encoded_pieces(generation, encoder):
            for begin in range(0, len(piece), MAX_FRAME_BYTES):
                yield piece[begin : begin + MAX_FRAME_BYTES]

    async def _send(self, event: Event) -> None:
        await self._websocket_send(json.dumps(event))

    async def _websocket_send(self, data: str | bytes) -> None:
        """Send a message once the connection has taken those before.

        Raises:
            SessionEnd: if it does not.
        """
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                if isinstance(data, str):
                    await self._websocket.send_text(data)
                else:
                    await self._websocket.send_bytes(data)
        except TimeoutError:
            logger.warning("A client has read nothing for %g seconds", IDLE_SECONDS)
            raise SessionEnd(None) from None


def _audio_done(progress: Progress) -> Event:
    return {
        "type": "audio.done",
        **progress.sentence.place,
        "total_bytes": progress.num_bytes,
    }


def _session_done(utterance: int, num_sentences: int) -> Event:
    return {
        "type": "session.done",
        "utterance_index": utterance,
        "total_sentences": num_sentences,
    }
