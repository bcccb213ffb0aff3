# SPDX-License-Identifier: Apache-2.0
"""POST /v1/audio/transcriptions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from vllm.entrypoints.speech.media import Clip
from vllm.entrypoints.speech.parameters import SpeechInput
from vllm.entrypoints.speech.server.endpoints.speech import token_usage
from vllm.entrypoints.speech.server.endpoints.transcript import Transcript
from vllm.entrypoints.speech.server.endpoints.transcription_chunks import transcription_chunks
from vllm.entrypoints.speech.server.errors import error_body
from vllm.entrypoints.speech.server.schemas import TranscriptionForm
from vllm.entrypoints.speech.server.service import SpeechService
from vllm.entrypoints.speech.server.sse import event, event_stream
from vllm.unison.frontend.errors import InvalidRequestError
from vllm.unison.frontend.tasks import FieldNames

_FIELDS = FieldNames(text="file", audio="file")


async def create_transcription(
    service: SpeechService, form: TranscriptionForm, raw_request: Request
) -> Response:
    """Answer with the text of an audio file, whole or as OpenAI's events.

    Audio that is longer than the model takes at once is cut in its silences; the requests for the
    parts run at once.
    """
    model = service.check(form.model)
    limit = service.media.limits.file_bytes
    data = await form.file.read(limit + 1)
    if len(data) > limit:
        raise InvalidRequestError(f"file must have at most {limit} bytes")
    clip = await service.media.decode(data, "file")
    inputs = transcription_input(form, clip)
    parts = await asyncio.to_thread(service.parts, inputs)
    generations = await service.start_all(raw_request, "transcription", parts)
    seconds = [part.clip.seconds for part in parts if part.clip is not None]
    transcript = Transcript(generations, seconds)
    if form.stream and (form.stream_include_usage or form.stream_continuous_usage_stats):
        chunks = transcription_chunks(transcript, model, form.stream_continuous_usage_stats)
        return event_stream(chunks)
    if form.stream:
        return event_stream(transcription_events(transcript))
    async for _ in transcript.deltas():
        pass
    if form.response_format == "verbose_json":
        languages = service.spec.languages
        only = languages[0] if len(languages) == 1 else None
        return JSONResponse(transcript.verbose(form.language or only))
    if form.response_format == "json":
        return JSONResponse({"text": transcript.text, "usage": _usage(transcript)})
    texts = {"text": lambda: transcript.text, "srt": transcript.srt, "vtt": transcript.vtt}
    return PlainTextResponse(texts[form.response_format]())


def transcription_input(form: TranscriptionForm, clip: Clip) -> SpeechInput:
    """What a request asks for, with the clip that its `file` holds."""
    return SpeechInput(
        modalities=frozenset({"text"}),
        clip=clip,
        task=form.task,
        sampling=form.sampling(),
        language=form.language,
        fields=_FIELDS,
    )


async def transcription_events(transcript: Transcript) -> AsyncIterator[str]:
    """OpenAI's events of a streamed transcription."""
    try:
        async for delta in transcript.deltas():
            yield event({"type": "transcript.text.delta", "delta": delta})
    except Exception as error:
        yield event(error_body(error))
        return
    yield event(
        {"type": "transcript.text.done", "text": transcript.text, "usage": _usage(transcript)}
    )


def _usage(transcript: Transcript) -> dict[str, Any]:
    return {"type": "tokens", **token_usage(transcript.usage)}
