# SPDX-License-Identifier: Apache-2.0
"""`vllm run-batch` with a multi-stream model: the lines of a file, sent to the server's routes."""

from __future__ import annotations

import asyncio
import base64
import json
from argparse import Namespace
from collections.abc import Callable
from http import HTTPStatus
from typing import IO, Any

import httpx2
from fastapi import FastAPI
from pydantic import ValidationError

from vllm.engine.protocol import EngineClient
from vllm.entrypoints.launchers.run_batch import (
    BatchRequestOutput,
    BatchResponseData,
    download_bytes_from_url,
)
from vllm.entrypoints.serve.engine.protocol import OpenAIBaseModel
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.entrypoints.speech.cli.batch_files import progress, read_lines, write_answers
from vllm.entrypoints.speech.encoding import wav_sizes
from vllm.entrypoints.speech.server.routes import register_speech_routes
from vllm.utils import random_uuid

SPEECH, TRANSCRIPTIONS = "/v1/audio/speech", "/v1/audio/transcriptions"
URLS = (SPEECH, "/v1/audio/generations", TRANSCRIPTIONS, "/v1/chat/completions")
MAX_CONCURRENT = 256
"""Requests at once; each holds its audio until it is answered."""


class Line(OpenAIBaseModel):
    """A line of the file, as OpenAI's batches have it."""

    custom_id: str
    method: str = "POST"
    url: str
    body: dict[str, Any]


class AnswerData(BatchResponseData):
    """Upstream's, for bodies of any form."""

    body: Any = None


class Answer(BatchRequestOutput):
    """Upstream's, for bodies of any form."""

    response: AnswerData | None


async def run_speech_batch(
    engine_client: EngineClient, args: Namespace, input_file: IO[str] | None = None
) -> None:
    """Answer the file of requests as the server's routes would.

    input_file: the file, where upstream holds it open.

    The answer to a request for audio is `{"content_type": ..., "data": ...}` with the file in
    base64 (`data` of several clips is that of the route); a
    transcription has a `file_url` instead of a file: http, https or a data URL.
    """
    from vllm.entrypoints.launchers.api_server.entry import init_app_state

    app = FastAPI()
    app.state.args = args
    init_exception_handler(app)
    register_speech_routes(app, engine_client.model_config)
    tasks = await engine_client.get_supported_tasks()
    await init_app_state(engine_client, app.state, args, tasks)
    lines = await read_lines(args, input_file)
    gate = asyncio.Semaphore(MAX_CONCURRENT)
    # A request of any length in time: the engine works off its queue.
    transport = httpx2.ASGITransport(app)
    async with httpx2.AsyncClient(
        transport=transport, base_url="http://batch", timeout=None
    ) as client:

        async def answer(text: str, completed: Callable[[], None]) -> Answer:
            async with gate:
                try:
                    return await _answer(client, Line.model_validate_json(text), args)
                except ValidationError as error:
                    first = error.errors(include_url=False, include_input=False)[0]
                    place = ".".join(map(str, first["loc"]))
                    return _failed(_custom_id(text), f"{place}: {first['msg']}", place or None)
                finally:
                    completed()

        with progress(len(lines)) as completed:
            answers = await asyncio.gather(*(answer(line, completed) for line in lines))
    await write_answers(args, answers)


async def _answer(client: httpx2.AsyncClient, line: Line, args: Namespace) -> Answer:
    body = dict(line.body)
    if line.url not in URLS or line.method != "POST":
        accepted = f"url must be one of {', '.join(URLS)}, with method POST"
        return _failed(line.custom_id, f"{accepted}; not {line.method} {line.url[:200]}", "url")
    for name, value in (("stream", False), ("stream_format", "audio")):
        if body.get(name) not in (None, value):
            message = f"{name} must be {json.dumps(value)}: answers of a batch are not streamed"
            return _failed(line.custom_id, message, name)
    if line.url == TRANSCRIPTIONS:
        address = body.pop("file_url", None)
        if not isinstance(address, str) or "file" in body:
            return _failed(
                line.custom_id, "file_url must be a URL, in place of the route's file", "file_url"
            )
        try:
            data = await download_bytes_from_url(
                address, allowed_media_domains=getattr(args, "allowed_media_domains", None)
            )
        except Exception as error:  # of many kinds, by what it is that cannot be had
            return _failed(line.custom_id, f"file_url: {str(error)[:500]}", "file_url")
        form = {name: _field(value) for name, value in body.items()}
        response = await client.post(line.url, data=form, files={"file": ("audio", data)})
    else:
        response = await client.post(line.url, json=body)
    if response.is_success:
        return _answered(line.custom_id, response.status_code, _content(response))
    return _answered(line.custom_id, response.status_code, None, _content(response))


def _field(value: Any) -> Any:
    """A value of JSON as a form has it."""
    if isinstance(value, list):
        return [_field(one) for one in value]
    return value if isinstance(value, str) else json.dumps(value)


def _content(response: httpx2.Response) -> Any:
    kind = response.headers.get("content-type", "")
    if kind.startswith("application/json"):
        return response.json()
    if kind.startswith("text/"):
        return {"text": response.text}
    data = bytearray(response.content)
    if kind.startswith("audio/wav"):
        for offset, size in wav_sizes(len(data)):  # which a streamed file's header leaves open
            data[offset : offset + len(size)] = size
    return {"content_type": kind, "data": base64.b64encode(data).decode()}


def _custom_id(text: str) -> str:
    """That of a line that is wrong otherwise, or nothing."""
    try:
        return str(json.loads(text)["custom_id"])
    except (ValueError, KeyError, TypeError):
        return ""


def _failed(custom_id: str, message: str, param: str | None) -> Answer:
    code = HTTPStatus.BAD_REQUEST
    error = {"message": message, "type": "BadRequestError", "param": param, "code": code.value}
    return _answered(custom_id, code.value, None, {"error": error})


def _answered(custom_id: str, status: int, body: Any, error: Any = None) -> Answer:
    request_id = f"vllm-batch-{random_uuid()}"
    response = AnswerData(status_code=status, request_id=request_id, body=body)
    return Answer(id=f"vllm-{random_uuid()}", custom_id=custom_id, response=response, error=error)
