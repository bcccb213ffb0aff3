# SPDX-License-Identifier: Apache-2.0
"""POST /v1/audio/generations: audio from a description."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from vllm.entrypoints.speech.parameters import SpeechInput
from vllm.entrypoints.speech.server.endpoints.speech import audio_answer, token_usage, whole_file
from vllm.entrypoints.speech.server.schemas import GenerationRequest
from vllm.entrypoints.speech.server.service import Generation, SpeechService, Usage


async def create_generation(
    service: SpeechService, request: GenerationRequest, raw_request: Request
) -> Response:
    """Answer with one clip as speech is answered, with several as JSON."""
    service.check(request.model)
    inputs = SpeechInput(
        modalities=frozenset({"audio"}),
        text=request.prompt,
        task=request.task,
        sampling=request.sampling(),
        duration=request.duration,
        extend_stride=request.extend_stride,
    )
    generations = await service.start_all(raw_request, "generation", clips(inputs, request.n))
    if request.n == 1:
        return await audio_answer(service, generations[0], request, request.is_streamed)
    files = await whole_files(service, generations, request.response_format)
    usage = sum((generation.usage for generation in generations), Usage())
    return JSONResponse(
        {
            "created": int(time.time()),
            "data": [{"b64_json": base64.b64encode(file).decode("ascii")} for file in files],
            "output_format": request.response_format,
            "sample_rate": service.sample_rate,
            "channels": service.num_channels,
            "usage": token_usage(usage),
        }
    )


def clips(request: SpeechInput, n: int) -> list[SpeechInput]:
    """Requests for n clips; clip i has the request's seed + i, as upstream's `n` has."""
    seed: Any = request.sampling.get("seed")
    if seed is None:
        return [request] * n
    return [replace(request, sampling={**request.sampling, "seed": seed + i}) for i in range(n)]


async def whole_files(
    service: SpeechService, generations: Sequence[Generation], audio_format: str
) -> list[bytes]:
    """The files of requests that run at once; if one fails, the others end with it."""
    files = [
        asyncio.ensure_future(whole_file(made, service.encoder(audio_format, is_whole=True)))
        for made in generations
    ]
    try:
        return list(await asyncio.gather(*files))
    except BaseException:
        for file in files:
            file.cancel()
        await asyncio.gather(*files, return_exceptions=True)
        for made in generations:
            await made.aclose()
        raise
