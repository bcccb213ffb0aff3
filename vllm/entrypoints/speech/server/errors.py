# SPDX-License-Identifier: Apache-2.0
"""Errors in OpenAI's shape, naming the field."""

from __future__ import annotations

from typing import Any

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.entrypoints.speech.server.schema_errors import describe
from vllm.logger import init_logger

logger = init_logger(__name__)

MAX_MESSAGE = 1000
"""Most characters of a message: values that clients send may be of any length."""
MAX_NAME = 64
"""Most characters of a field's name in a message: clients may make them up."""


def bounded(message: str) -> str:
    """A message of at most MAX_MESSAGE characters."""
    return message if len(message) <= MAX_MESSAGE else f"{message[: MAX_MESSAGE - 1]}…"


def error_body(error: Exception) -> dict[str, Any]:
    """The body for an error that an answer runs into after it has begun."""
    body = create_error_response(error)
    if body.error.code >= 500:
        logger.error("A streamed answer failed: %s", error)
    return body.model_dump()


def error_object(message: str, status: int, param: str | None = None) -> dict[str, Any]:
    """What OpenAI's shape says of a refusal, under its key `error`."""
    kind = "ServiceUnavailableError" if status == 503 else "BadRequestError"
    return {"message": bounded(message), "type": kind, "param": param, "code": status}


def error_response(message: str, status: int, param: str | None = None) -> JSONResponse:
    """An error in OpenAI's shape."""
    return JSONResponse({"error": error_object(message, status, param)}, status_code=status)


def validation_response(error: RequestValidationError) -> JSONResponse:
    """400 for a body that does not fit the schema.

    Values are shown only if they are short: they may be of any size, and of any bytes.
    """
    message, field = describe(error.errors()[0], error.body)
    return error_response(message, 400, field)
