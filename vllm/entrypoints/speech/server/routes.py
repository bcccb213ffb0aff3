# SPDX-License-Identifier: Apache-2.0
"""The routes of multi-stream models, in place of those of upstream that cannot return audio."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, FastAPI, Form, Request, WebSocket, params
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

import vllm.envs as envs
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.utils.api_utils import load_aware_call, with_cancellation
from vllm.entrypoints.speech.encoding import FORMATS
from vllm.entrypoints.speech.media import MiB
from vllm.entrypoints.speech.server.body import (
    MAX_VALUES,
    TEXT_BYTES,
    BodyError,
    BodyLimits,
    JsonReader,
    KiB,
    is_json,
)
from vllm.entrypoints.speech.server.endpoints import (
    capabilities,
    chat,
    generations,
    speech,
    speech_stream,
)
from vllm.entrypoints.speech.server.endpoints import transcriptions as transcription
from vllm.entrypoints.speech.server.errors import error_response, validation_response
from vllm.entrypoints.speech.server.exact_schema import keep_bounds_exact
from vllm.entrypoints.speech.server.forms import is_multipart, json_of_form, read_form
from vllm.entrypoints.speech.server.lifecycle import Lifecycle
from vllm.entrypoints.speech.server.local_docs import serve_docs
from vllm.entrypoints.speech.server.middleware import SpeechMiddleware
from vllm.entrypoints.speech.server.playground import serve_playground
from vllm.entrypoints.speech.server.schemas import (
    ChatRequest,
    GenerationRequest,
    SpeechRequest,
    TranscriptionForm,
)
from vllm.entrypoints.speech.server.service import SpeechService
from vllm.entrypoints.speech.server.voices import recorded_voices, voice_aliases
from vllm.unison.model.spec import multistream_spec
from vllm.version import __version__ as VLLM_VERSION

if TYPE_CHECKING:
    from vllm.config import ModelConfig
    from vllm.engine.protocol import EngineClient

WITHOUT_AUDIO = (
    "/generative_scoring",
    "/inference/v1/generate",
    "/invocations",
    "/v1/chat/completions/batch",
    "/v1/chat/completions/derender",
    "/v1/chat/completions/render",
    "/v1/completions",
    "/v1/completions/derender",
    "/v1/completions/render",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/messages/render",
    "/v1/responses",
    "/v1/responses/render",
    "/v1/systemone",
)
"""Upstream's routes that would run a request and drop the audio that it makes, or write prompts of
text for those."""


CHAT, SPEECH = "/v1/chat/completions", "/v1/audio/speech"
TRANSCRIPTIONS = "/v1/audio/transcriptions"


def body_limits(path: str) -> BodyLimits:
    """What the body of a request to a path may be: text, and an audio file where it takes one."""
    file_bytes = int(envs.VLLM_MAX_AUDIO_CLIP_FILESIZE_MB * MiB)
    # Encoders may put a line end, of up to four bytes in JSON, after every 76 bytes of base64.
    base64_bytes = file_bytes * 4 // 3 * 80 // 76 + KiB
    audio = {CHAT: base64_bytes, SPEECH: base64_bytes, TRANSCRIPTIONS: file_bytes}
    return BodyLimits(audio.get(path, 0) + TEXT_BYTES)


FORMS_AS_JSON: dict[str, type[BaseModel]] = {SPEECH: SpeechRequest}
"""Routes of JSON whose body may come as a form as well, with files in it."""


class GuardedRoute(APIRoute):
    """A route that reads its body within limits, and answers in OpenAI's error shape."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()
        limits = body_limits(self.path)
        is_form = self.body_field is not None and isinstance(
            self.body_field.field_info, params.Form
        )
        form_model = FORMS_AS_JSON.get(self.path)

        async def guarded(request: Request) -> Response:
            try:
                content_type = request.headers.get("content-type")
                if is_form:
                    await read_form(request)
                elif form_model is not None and is_multipart(content_type):
                    await _read_form_as_json(request, form_model)
                elif self.body_field is not None:
                    await _read_json(request, limits, form_model is not None)
                return await handler(request)
            except BodyError as error:
                return error_response(error.message, error.status, error.param)
            except RequestValidationError as error:
                return validation_response(error)
            except HTTPException as error:
                return error_response(str(error.detail), error.status_code)
            except ClientDisconnect:
                # Nobody reads this; unless the body was cut off at the limit, which is answered
                # in its place.
                return error_response("the body is incomplete", 400)

        return guarded


# FastAPI asks a request for its body, form or JSON, and finds what was read here.


async def _read_json(request: Request, limits: BodyLimits, takes_form: bool) -> None:
    reader = JsonReader(limits)
    num_bytes = 0
    async for piece in request.stream():
        if num_bytes == 0 and piece and not is_json(request.headers.get("content-type")):
            forms = " or multipart/form-data" if takes_form else ""
            raise BodyError(f"content-type must be application/json{forms}")
        num_bytes += len(piece)
        reader.feed(piece)
    request._body = b""
    if num_bytes:
        request._body = b"{}"
        request._json = reader.value()


async def _read_form_as_json(request: Request, model: type[BaseModel]) -> None:
    request._json = await json_of_form(request, model)
    request._body = b"{}"
    headers = request.headers.mutablecopy()
    headers["content-type"] = "application/json"
    request._headers = headers


_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse} for status in (400, 404, 413, 422, 500, 503)
}
_EVENTS: dict[str, Any] = {"text/event-stream": {}}

router = APIRouter(route_class=GuardedRoute)


def _as_form_too(model: type[BaseModel]) -> dict[str, Any]:
    """What the schema of a route says of the form that it takes in place of JSON."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"content": {"multipart/form-data": {"schema": schema}}}}


def _service(request: Request) -> SpeechService:
    return request.app.state.speech_service


@router.post(
    SPEECH,
    response_class=Response,
    openapi_extra=_as_form_too(SpeechRequest),
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


@router.post(
    "/v1/audio/generations",
    response_class=Response,
    responses={
        **_ERRORS,
        200: {
            "content": {f.media_type: {} for f in FORMATS.values()}
            | {"application/json": {}}
            | _EVENTS
        },
    },
)
@with_cancellation
@load_aware_call
async def create_generation(request: GenerationRequest, raw_request: Request) -> Response:
    """Audio from a description."""
    return await generations.create_generation(_service(raw_request), request, raw_request)


@router.websocket(f"{SPEECH}/stream")
async def stream_speech(websocket: WebSocket) -> None:
    """Text to speech while the text comes."""
    state = websocket.app.state
    session = speech_stream.SpeechSession(
        websocket, state.speech_service, state.lifecycle, body_limits(SPEECH)
    )
    await session.run()


@router.get("/v1/audio/voices")
async def list_voices(raw_request: Request) -> dict[str, Any]:
    """The names that speech requests may give as `voice`."""
    return speech.list_voices(_service(raw_request))


@router.get("/v1/audio/capabilities")
async def get_capabilities(raw_request: Request) -> capabilities.Capabilities:
    """What the served model does."""
    return capabilities.capabilities_of(_service(raw_request))


@router.post(
    TRANSCRIPTIONS,
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
    CHAT,
    response_class=Response,
    responses={**_ERRORS, 200: {"content": {"application/json": {}} | _EVENTS}},
)
@with_cancellation
@load_aware_call
async def create_chat_completion(request: ChatRequest, raw_request: Request) -> Response:
    """An answer to a message of text and audio, as text, audio or both."""
    chat.check_messages(_service(raw_request).spec, request)
    return await chat.create_chat_completion(_service(raw_request), request, raw_request)


async def refuse(raw_request: Request) -> JSONResponse:
    """501 for a route that cannot return audio."""
    raise NotImplementedError(
        f"{raw_request.url.path} cannot return what this model makes; use /v1/audio/speech, "
        "/v1/audio/generations, /v1/audio/transcriptions or /v1/chat/completions"
    )


def register_speech_routes(app: FastAPI, model_config: ModelConfig | None) -> None:
    """Give the server of a multi-stream model its routes; other servers stay as they are.

    Upstream's routes at the same paths are taken away, and those that would drop audio refuse.
    """
    if multistream_spec(model_config) is None:
        return
    assert model_config is not None
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
    app.title, app.version = "Unison", VLLM_VERSION
    serve_docs(app)
    serve_playground(app, getattr(app.state, "args", None))
    keep_bounds_exact(app, (SpeechRequest, GenerationRequest, TranscriptionForm, ChatRequest))
    app.state.lifecycle = Lifecycle()
    # Its metrics are made by its import, and an engine that starts takes those away that it finds.
    from vllm.entrypoints.speech_to_text.realtime.metrics import WebSocketMetricsMiddleware

    app.add_middleware(WebSocketMetricsMiddleware)
    limits = {path: body_limits(path) for path in own}
    limits["/detokenize"] = BodyLimits(num_values=model_config.max_model_len + MAX_VALUES)
    app.add_middleware(
        SpeechMiddleware,
        lifecycle=app.state.lifecycle,
        limits=limits,
        reads_json=frozenset(own),
    )


def init_speech_state(engine_client: EngineClient, state: State, args: Namespace) -> None:
    """Make what the routes share, once the engine runs."""
    if multistream_spec(engine_client.model_config) is None:
        return
    from vllm.entrypoints.serve.utils.request_logger import RequestLogger

    logger = RequestLogger(max_log_len=args.max_log_len) if args.enable_log_requests else None
    recorded = recorded_voices(args, engine_client.model_config)
    state.speech_service = SpeechService(
        engine_client,
        state.openai_serving_models,
        request_logger=logger,
        voice_aliases=voice_aliases(args, engine_client.model_config, recorded),
        recorded_voices=recorded,
    )
