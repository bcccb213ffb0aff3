# SPDX-License-Identifier: Apache-2.0
"""POST /v1/chat/completions, with audio in and out."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from vllm.entrypoints.speech.encoding import Encoder
from vllm.entrypoints.speech.media import Clip
from vllm.entrypoints.speech.parameters import SpeechInput
from vllm.entrypoints.speech.server.endpoints.speech import encode, encoded, finish
from vllm.entrypoints.speech.server.errors import error_body
from vllm.entrypoints.speech.server.schemas import (
    ChatMessage,
    ChatRequest,
    InputAudioPart,
    TextPart,
    voice_name,
)
from vllm.entrypoints.speech.server.service import Generation, SpeechService, Usage
from vllm.entrypoints.speech.server.sse import DONE, event, event_stream
from vllm.unison.frontend.errors import InvalidRequestError
from vllm.unison.frontend.tasks import FieldNames
from vllm.unison.messages.streams import AudioOutput
from vllm.unison.model.spec import SpeechSpec


async def create_chat_completion(
    service: SpeechService, request: ChatRequest, raw_request: Request
) -> Response:
    """Answer a message with text, audio or both, whole or in chunks."""
    model = service.check(request.model)
    modalities: set[str] = set(request.modalities or ["text"])
    _check_combinations(request, modalities)
    known = service.spec.conversations
    if known and request.task in (None, *known):
        inputs = await _conversation(service, request, modalities)
    else:
        inputs = await _message(service, request, modalities)
    generation = await service.start(raw_request, "chatcmpl", inputs)
    encoder = None
    if "audio" in modalities:
        encoder = service.encoder(_format(request), is_whole=not request.stream)
    answer = ChatAnswer(model, generation, encoder)
    if not request.stream:
        return JSONResponse(await answer.whole())
    include_usage = request.stream_options is not None and request.stream_options.include_usage
    return event_stream(answer.chunks(include_usage))


def check_messages(spec: SpeechSpec, request: ChatRequest) -> None:
    """Refuse a conversation of a model that has none, by the name of what makes it one.

    Raises:
        InvalidRequestError: naming the field.
    """
    messages, known = request.messages, spec.conversations
    if known and request.task in (None, *known):
        if (role := messages[-1].role) != "user":
            raise InvalidRequestError(
                f"messages[{len(messages) - 1}].role must be 'user', not {role!r}: the last "
                "message is answered"
            )
        return
    why = "the model has no task for a conversation"
    if known:
        why = f"task {request.task!r} is none of the conversations {list(known)}"
    for index, message in enumerate(messages):
        if message.role != "user":
            raise InvalidRequestError(
                f"messages[{index}].role must be 'user', not {message.role!r}: {why}"
            )
    if len(messages) > 1:
        raise InvalidRequestError(f"messages must hold one message, not {len(messages)}: {why}")


async def _conversation(
    service: SpeechService, request: ChatRequest, modalities: set[str]
) -> SpeechInput:
    """All messages, as turns of a conversation."""
    turns: list[dict[str, Any]] = []
    for index, message in enumerate(request.messages):
        where = f"messages[{index}].content"
        content = message.content
        parts = [TextPart(type="text", text=content)] if isinstance(content, str) else content
        said = [
            {"type": "text", "text": part.text}
            if isinstance(part, TextPart)
            else {"type": "audio", "audio": await _samples(service, part, f"{where}[{place}]")}
            for place, part in enumerate(parts)
            if _says_something(part)
        ]
        if not said:
            raise InvalidRequestError(f"{where} must hold text or input_audio")
        turns.append({"role": message.role, "content": said})
    return SpeechInput(
        # As for one message: a transcript comes along if the model makes one.
        modalities=frozenset({"audio"} if "audio" in modalities else modalities),
        messages=turns,
        voice=None if request.audio is None else voice_name(request.audio.voice),
        task=request.task,
        sampling=_sampling(request),
        fields=FieldNames("messages", "messages", "modalities", "audio.voice"),
    )


async def _samples(service: SpeechService, part: InputAudioPart, where: str) -> tuple[Any, int]:
    clip = await service.clip(part.input_audio.data, f"{where}.input_audio.data")
    return clip.samples, clip.sample_rate


async def _message(
    service: SpeechService, request: ChatRequest, modalities: set[str]
) -> SpeechInput:
    """The one message, as the inputs of a task."""
    message = request.messages[0]
    if isinstance(message.content, list) and not any(map(_says_something, message.content)):
        raise InvalidRequestError("messages[0].content must hold text or input_audio")
    return SpeechInput(
        # OpenAI asks for both modalities where audio is meant: its text is a transcript, if the
        # model makes one.
        modalities=frozenset({"audio"} if "audio" in modalities else modalities),
        text=_text(message),
        clip=await _clip(service, message),
        voice=None if request.audio is None else voice_name(request.audio.voice),
        task=request.task,
        sampling=_sampling(request),
        fields=FieldNames(_text_field(message), _audio_field(message), "modalities", "audio.voice"),
    )


def _check_combinations(request: ChatRequest, modalities: set[str]) -> None:
    if request.audio is not None and "audio" not in modalities:
        raise InvalidRequestError("audio must not be given: modalities does not hold 'audio'")
    options = request.stream_options
    if options is not None and options.include_usage and not request.stream:
        raise InvalidRequestError(
            "stream_options.include_usage must be false where stream is false"
        )
    if request.max_tokens is not None and request.max_completion_tokens is not None:
        raise InvalidRequestError("max_tokens must not be given beside max_completion_tokens")


def _sampling(request: ChatRequest) -> dict[str, Any]:
    sampling = request.sampling()
    if request.max_completion_tokens is not None:
        sampling["max_tokens"] = request.max_completion_tokens
    return sampling


def _format(request: ChatRequest) -> str:
    chosen = None if request.audio is None else request.audio.format
    if chosen is None:
        chosen = "pcm16" if request.stream else "wav"
    return "pcm" if chosen == "pcm16" else chosen


def _text(message: ChatMessage) -> str | None:
    if isinstance(message.content, str):
        return message.content
    # A blank part says nothing; clients put one beside audio.
    texts = [
        part.text
        for part in message.content
        if isinstance(part, TextPart) and _says_something(part)
    ]
    return "\n".join(texts) if texts else None


def _says_something(part: TextPart | InputAudioPart) -> bool:
    return not isinstance(part, TextPart) or bool(part.text.strip())


def _text_field(message: ChatMessage) -> str:
    part = _part_field(message, TextPart)
    return "messages[0].content" if part is None else f"{part}.text"


def _audio_field(message: ChatMessage) -> str:
    part = _part_field(message, InputAudioPart)
    return "messages[0].content" if part is None else f"{part}.input_audio.data"


def _part_field(message: ChatMessage, kind: type[TextPart | InputAudioPart]) -> str | None:
    """Where the first part of a kind that says something stands; None if there is none."""
    if isinstance(message.content, str):
        return None
    for index, part in enumerate(message.content):
        if isinstance(part, kind) and _says_something(part):
            return f"messages[0].content[{index}]"
    return None


async def _clip(service: SpeechService, message: ChatMessage) -> Clip | None:
    if isinstance(message.content, str):
        return None
    parts = [part for part in message.content if isinstance(part, InputAudioPart)]
    if not parts:
        return None
    if len(parts) > 1:
        raise InvalidRequestError(
            f"messages[0].content must hold one input_audio at most, not {len(parts)}"
        )
    return await service.clip(parts[0].input_audio.data, _audio_field(message))


class ChatAnswer:
    """The answer to one message, in OpenAI's shapes.

    Where audio is wanted, text is its transcript, as in OpenAI's answers.

    Args:
        model: name of the model.
        generation: the running request.
        encoder: of the audio, whole for `whole`; None if none is wanted.
    """

    def __init__(self, model: str, generation: Generation, encoder: Encoder | None) -> None:
        self._generation = generation
        self._encoder = encoder
        self._head = {
            "id": generation.request_id,
            "created": int(time.time()),
            "model": model,
        }
        self._audio_id = f"audio-{generation.request_id}"

    async def whole(self) -> dict[str, Any]:
        """The answer as one object."""
        texts: list[str] = []
        pieces: list[AudioOutput | None] = []
        finish_reason = None
        async for completion in self._generation:
            texts.append(completion.text)
            finish_reason = completion.finish_reason
            pieces.append(completion.audio)
        text = "".join(texts)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self._encoder is not None:
            data = await asyncio.to_thread(encoded, self._encoder, pieces)
            message["content"] = None
            message["audio"] = {
                "id": self._audio_id,
                "data": base64.b64encode(data).decode("ascii"),
                "expires_at": self._head["created"],
                "transcript": text,
            }
        choice = {
            "index": 0,
            "message": message,
            "finish_reason": finish_reason,
            "logprobs": None,
        }
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [choice],
            "usage": chat_usage(self._generation.usage),
        }

    async def chunks(self, include_usage: bool) -> AsyncIterator[str]:
        """The answer as server-sent events."""
        encoder = self._encoder
        yield self._chunk({"role": "assistant", "content": None if encoder else ""})
        finish_reason = None
        try:
            async for completion in self._generation:
                finish_reason = completion.finish_reason
                if completion.text:
                    yield self._chunk(self._text_delta(completion.text))
                if encoder is not None and (data := await encode(encoder, completion.audio)):
                    yield self._chunk(self._audio_delta(data))
            if encoder is not None:
                if data := await finish(encoder):
                    yield self._chunk(self._audio_delta(data))
                expiry = {"id": self._audio_id, "expires_at": self._head["created"]}
                yield self._chunk({"audio": expiry})
        except Exception as error:
            yield event(error_body(error))
            yield DONE
            return
        yield self._chunk({}, finish_reason)
        if include_usage:
            usage = chat_usage(self._generation.usage)
            yield event(
                {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage}
            )
        yield DONE

    def _text_delta(self, text: str) -> dict[str, Any]:
        if self._encoder is not None:
            return {"audio": {"id": self._audio_id, "transcript": text}}
        return {"content": text}

    def _audio_delta(self, data: bytes) -> dict[str, Any]:
        audio = base64.b64encode(data).decode("ascii")
        return {"audio": {"id": self._audio_id, "data": audio}}

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish_reason, "logprobs": None}
        return event({**self._head, "object": "chat.completion.chunk", "choices": [choice]})


def chat_usage(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage object of chat, with frames as audio tokens, and seconds."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {
            "text_tokens": usage.prompt_text_tokens,
            "audio_tokens": usage.prompt_frames,
            "audio_seconds": usage.prompt_seconds,
        },
        "completion_tokens_details": {
            "text_tokens": usage.text_tokens,
            "audio_tokens": usage.frames,
            "audio_seconds": usage.seconds,
        },
    }
