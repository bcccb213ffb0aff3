# SPDX-License-Identifier: Apache-2.0
"""The routes of multi-stream models, in place of those of upstream that cannot return audio."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, FastAPI, Form, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive

import vllm.envs as envs
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import load_aware_call, with_cancellation
from vllm.entrypoints.speech import chat, speech, transcription
from vllm.entrypoints.speech.encoding import FORMATS
from vllm.entrypoints.speech.errors import error_response, validation_response
from vllm.entrypoints.speech.media import MiB
from vllm.entrypoints.speech.protocol import ChatRequest, SpeechRequest, TranscriptionForm
from vllm.entrypoints.speech.service import SpeechService
from vllm.multistream.spec import multistream_spec

if TYPE_CHECKING:
    from vllm.config import ModelConfig
    from vllm.engine.protocol import EngineClient

WITHOUT_AUDIO = (
    "/generative_scoring",
    "/inference/v1/generate",
    "/invocations",
    "/v1/chat/completions/batch",
    "/v1/completions",
    "/v1/messages",
    "/v1/responses",
    "/v1/systemone",
)
"""Upstream's routes that would run a request and drop the audio that it makes."""


def max_body_bytes() -> int:
    """Most bytes of a request: an audio file in base64, and room for the rest."""
    return int(envs.VLLM_MAX_AUDIO_CLIP_FILESIZE_MB * MiB) * 4 // 3 + MiB


class _TooLarge(Exception):
    pass


async def _drain(receive: Receive, limit: int) -> None:
    """Read the rest of a body, up to a limit, and keep none: most clients read no answer before
    they have sent all."""
    dropped = 0
    while dropped <= limit:
        message = await receive()
        dropped += len(message.get("body", b""))
        if not message.get("more_body", False):
            return


class GuardedRoute(APIRoute):
    """A route that reads no more of a body than its limit, and answers in OpenAI's error shape."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        limit = max_body_bytes()

        async def guarded(request: Request) -> Response:
            declared = request.headers.get("content-length", "0")
            is_too_large = not declared.isdecimal() or int(declared) > limit
            seen, is_at_end = 0, False
            receive = request._receive

            async def counted() -> Message:
                nonlocal seen, is_at_end, is_too_large
                message = await receive()
                seen += len(message.get("body", b""))
                is_at_end = not message.get("more_body", False)
                if seen > limit:
                    is_too_large = True
                    raise _TooLarge
                return message

            request._receive = counted
            try:
                if not is_too_large:
                    return await handler(request)
            except RequestValidationError as error:
                return validation_response(error)
            except HTTPException as error:
                # FastAPI turns what is raised while it reads the body into one of these.
                if not is_too_large:
                    return error_response(str(error.detail), error.status_code)
            except _TooLarge:
                pass
            if not is_at_end:
                await _drain(receive, limit)
            return error_response(f"body must have at most {limit} bytes", 413)

        return guarded


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 404, 413, 422, 500, 503)
}
_EVENTS: dict[str, Any] = {"text/event-stream": {}}

router = APIRouter(route_class=GuardedRoute)


def _service(request: Request) -> SpeechService:
    return request.app.state.speech_service


@router.post(
    "/v1/audio/speech",
    response_class=Response,
    responses={
        **_ERRORS,
        200: {"content": {f.media_type: {} for f in FORMATS.values()} | _EVENTS},
    },
)
@with_cancellation
@load_aware_call
async def create_speech(request: SpeechRequest, raw_request: Request) -> Response:
    """Text to speech."""
    return await speech.create_speech(_service(raw_request), request, raw_request)


@router.get("/v1/audio/voices")
async def list_voices(raw_request: Request) -> dict[str, Any]:
    """The names that speech requests may give as `voice`."""
    return speech.list_voices(_service(raw_request))


@router.post(
    "/v1/audio/transcriptions",
    response_class=Response,
    responses={
        **_ERRORS,
        200: {"content": {"application/json": {}, "text/plain": {}} | _EVENTS},
    },
)
@with_cancellation
@load_aware_call
async def create_transcription(
    request: Annotated[TranscriptionForm, Form()], raw_request: Request
) -> Response:
    """Speech to text."""
    return await transcription.create_transcription(_service(raw_request), request, raw_request)


@router.post(
    "/v1/chat/completions",
    response_class=Response,
    responses={**_ERRORS, 200: {"content": {"application/json": {}} | _EVENTS}},
)
@with_cancellation
@load_aware_call
async def create_chat_completion(request: ChatRequest, raw_request: Request) -> Response:
    """An answer to one message of text and audio, as text, audio or both."""
    return await chat.create_chat_completion(_service(raw_request), request, raw_request)


async def refuse(raw_request: Request) -> JSONResponse:
    """501 for a route that cannot return audio."""
    raise NotImplementedError(
        f"{raw_request.url.path} cannot return what this model makes; use /v1/audio/speech, "
        "/v1/audio/transcriptions or /v1/chat/completions"
    )


def register_speech_routes(app: FastAPI, model_config: ModelConfig | None) -> None:
    """Give the server of a multi-stream model its routes; other servers stay as they are.

    Upstream's routes at the same paths are taken away, and those that would drop audio refuse.
    """
    if multistream_spec(model_config) is None:
        return
    own = {route.path for route in router.routes if isinstance(route, APIRoute)}
    replaced = own | {path for path in WITHOUT_AUDIO}
    app.router.routes[:] = [
        route
        for route in app.router.routes
        if not (isinstance(route, APIRoute) and route.path in replaced)
    ]
    app.include_router(router)
    for path in WITHOUT_AUDIO:
        app.add_api_route(path, refuse, methods=["POST"], include_in_schema=False)


def init_speech_state(engine_client: EngineClient, state: State, args: Namespace) -> None:
    """Make what the routes share, once the engine runs."""
    if multistream_spec(engine_client.model_config) is None:
        return
    from vllm.entrypoints.serve.utils.request_logger import RequestLogger

    logger = RequestLogger(max_log_len=args.max_log_len) if args.enable_log_requests else None
    state.speech_service = SpeechService(
        engine_client, state.openai_serving_models, request_logger=logger
    )
