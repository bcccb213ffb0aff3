# SPDX-License-Identifier: Apache-2.0
"""POST /v1/audio/transcriptions."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from vllm.entrypoints.speech.errors import error_body
from vllm.entrypoints.speech.parameters import SpeechInput
from vllm.entrypoints.speech.protocol import TranscriptionForm
from vllm.entrypoints.speech.service import Generation, SpeechService
from vllm.entrypoints.speech.speech import token_usage
from vllm.entrypoints.speech.sse import event, event_stream
from vllm.entrypoints.speech.transcription_chunks import transcription_chunks
from vllm.multistream.refusal import RequestRefused


async def create_transcription(
    service: SpeechService, form: TranscriptionForm, raw_request: Request
) -> Response:
    """Answer with the text of an audio file, whole or as OpenAI's events."""
    model = service.check(form.model)
    limit = service.media.limits.file_bytes
    data = await form.file.read(limit + 1)
    if len(data) > limit:
        raise RequestRefused(f"file must have at most {limit} bytes")
    clip = await service.media.decode(data, "file")
    asked = SpeechInput(
        wanted=frozenset({"text"}), clip=clip, task=form.task, sampling=form.sampling()
    )
    generation = await service.start(raw_request, "transcription", asked)
    if form.stream and (form.stream_include_usage or form.stream_continuous_usage_stats):
        chunks = transcription_chunks(generation, model, form.stream_continuous_usage_stats)
        return event_stream(chunks)
    if form.stream:
        return event_stream(transcription_events(generation))
    text = "".join([completion.text async for completion in generation])
    if form.response_format == "text":
        return PlainTextResponse(text)
    return JSONResponse({"text": text, "usage": _usage(generation)})


async def transcription_events(generation: Generation) -> AsyncIterator[str]:
    """OpenAI's events of a streamed transcription."""
    text = ""
    try:
        async for completion in generation:
            if completion.text:
                text += completion.text
                yield event({"type": "transcript.text.delta", "delta": completion.text})
    except Exception as error:
        yield event(error_body(error))
        return
    yield event({"type": "transcript.text.done", "text": text, "usage": _usage(generation)})


def _usage(generation: Generation) -> dict[str, Any]:
    return {"type": "tokens", **token_usage(generation.usage)}
