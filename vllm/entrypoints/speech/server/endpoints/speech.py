# SPDX-License-Identifier: Apache-2.0
"""POST /v1/audio/speech and GET /v1/audio/voices."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Iterable
from dataclasses import replace
from typing import Any

from fastapi import Request
from fastapi.responses import Response, StreamingResponse

from vllm.entrypoints.speech.encoding import FORMATS, Encoder
from vllm.entrypoints.speech.parameters import Recording, SpeechInput
from vllm.entrypoints.speech.server.errors import error_body
from vllm.entrypoints.speech.server.schemas import (
    AudioFields,
    SpeechFields,
    SpeechRequest,
    voice_name,
)
from vllm.entrypoints.speech.server.service import Generation, SpeechService, Usage
from vllm.entrypoints.speech.server.sse import event, event_stream
from vllm.unison.frontend.tasks import FieldNames
from vllm.unison.messages.streams import AudioOutput

_FIELDS = FieldNames(text="input", audio="input")
_CLONING_FIELDS = replace(_FIELDS, voice="ref_audio", reference_text="ref_text")


async def create_speech(
    service: SpeechService, request: SpeechRequest, raw_request: Request
) -> Response:
    """Answer with audio as it is made, as a file or as events, or with a whole file."""
    service.check(request.model)
    inputs = speech_input(request, request.input, await recording_of(service, request))
    generation = await service.start(raw_request, "speech", inputs)
    return await audio_answer(service, generation, request, request.stream)


def speech_input(request: SpeechFields, text: str, recording: Recording | None) -> SpeechInput:
    """What to make: a text, spoken as the request says.

    Args:
        request: how it is to be spoken.
        text: what is to be said.
        recording: of `recording_of` for this request.
    """
    return SpeechInput(
        modalities=frozenset({"audio"}),
        text=text,
        voice=voice_name(request.voice),
        recording=recording,
        task=request.task,
        sampling=request.sampling(),
        duration=request.duration,
        extend_stride=request.extend_stride,
        language=request.language,
        fields=_FIELDS if request.ref_audio is None else _CLONING_FIELDS,
    )


async def recording_of(service: SpeechService, request: SpeechFields) -> Recording | None:
    """The recording that a request brings along, decoded.

    Raises:
        InvalidRequestError: naming the field.
    """
    if request.ref_audio is None:
        return None
    clip = await service.clip(request.ref_audio, "ref_audio")
    return Recording((clip.samples, clip.sample_rate), request.ref_text)


async def audio_answer(
    service: SpeechService, generation: Generation, request: AudioFields, is_streamed: bool
) -> Response:
    """Audio as it is made, as a file or as events, or a whole file."""
    media_type = FORMATS[request.response_format].media_type
    if request.response_format == "pcm":
        media_type += f"; rate={service.sample_rate}; channels={service.num_channels}"
    encoder = service.encoder(request.response_format, is_whole=not is_streamed)
    if not is_streamed:
        return Response(await whole_file(generation, encoder), media_type=media_type)
    pieces = encoded_pieces(generation, encoder)
    if request.stream_format == "sse":
        return event_stream(speech_events(pieces, generation))
    return StreamingResponse(pieces, media_type=media_type)


async def encoded_pieces(generation: Generation, encoder: Encoder) -> AsyncIterator[bytes]:
    """The bytes of an audio file, as soon as they are known."""
    async for completion in generation:
        if piece := await encode(encoder, completion.audio):
            yield piece
    if piece := await finish(encoder):
        yield piece


async def whole_file(generation: Generation, encoder: Encoder) -> bytes:
    """A complete file, by an encoder of whole files."""
    pieces = [completion.audio async for completion in generation]
    return await asyncio.to_thread(encoded, encoder, pieces)


def encoded(encoder: Encoder, pieces: Iterable[AudioOutput | None]) -> bytes:
    """The file of all audio, by an encoder of whole files."""
    return b"".join(encoder.encode(piece.samples) for piece in pieces if piece) + encoder.finish()


async def encode(encoder: Encoder, audio: AudioOutput | None) -> bytes:
    """Encode new samples, if there are any; beside the event loop if that computes."""
    if audio is None or len(audio.samples) == 0:
        return b""
    if encoder.is_compressed:
        return await asyncio.to_thread(encoder.encode, audio.samples)
    return encoder.encode(audio.samples)


async def finish(encoder: Encoder) -> bytes:
    """The rest of an encoder's file, in the same way."""
    if encoder.is_compressed:
        return await asyncio.to_thread(encoder.finish)
    return encoder.finish()


async def speech_events(pieces: AsyncIterator[bytes], generation: Generation) -> AsyncIterator[str]:
    """OpenAI's events of streamed speech; a failure is an event of its error shape."""
    try:
        async for piece in pieces:
            audio = base64.b64encode(piece).decode("ascii")
            yield event({"type": "speech.audio.delta", "audio": audio})
    except Exception as error:
        yield event(error_body(error))
        return
    yield event({"type": "speech.audio.done", "usage": token_usage(generation.usage)})


def token_usage(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage object of the audio routes, with frames as audio tokens, and seconds."""
    return {
        "input_tokens": usage.prompt_tokens,
        "input_token_details": {
            "text_tokens": usage.prompt_text_tokens,
            "audio_tokens": usage.prompt_frames,
            "audio_seconds": usage.prompt_seconds,
        },
        "output_tokens": usage.completion_tokens,
        "output_token_details": {
            "text_tokens": usage.text_tokens,
            "audio_tokens": usage.frames,
            "audio_seconds": usage.seconds,
        },
        "total_tokens": usage.total_tokens,
    }


def list_voices(service: SpeechService) -> dict[str, Any]:
    """The names of voices, as OpenAI shapes lists, and as other servers of speech do."""
    recorded, aliases = service.recorded_voices, service.voice_aliases
    names = {name: name for name in service.spec.voices}
    names |= {name: voice.display_name for name, voice in recorded.items()}
    languages = {name: voice.language for name, voice in recorded.items() if voice.language}
    return {
        "object": "list",
        "voices": [{"id": name, "name": names.get(name, name)} for name in [*names, *aliases]],
        "data": [
            {
                "id": name,
                "object": "audio.voice",
                "name": aliases[name] if name in aliases else names[name],
                "default": name == service.spec.default_voice,
            }
            | ({"language": languages[name]} if name in languages else {})
            for name in [*names, *aliases]
        ],
    }
