# SPDX-License-Identifier: Apache-2.0
"""Forms: read within limits, and in the shape of the JSON that a route takes as well."""

from __future__ import annotations

from typing import Any, get_args

from fastapi import Request
from pydantic import BaseModel
from starlette.datastructures import FormData, UploadFile

from vllm.entrypoints.speech.server import neutral
from vllm.entrypoints.speech.server.body import BodyError, KiB, repeated

MAX_FIELDS = 64
MAX_FILES = 8
MAX_FIELD_BYTES = 64 * KiB


def is_multipart(content_type: str | None) -> bool:
    """Whether a header announces a form that may hold files."""
    media_type = (content_type or "").partition(";")[0]
    return media_type.strip().lower() == "multipart/form-data"


async def read_form(request: Request) -> FormData:
    """The form of a request, which keeps it for FastAPI to find.

    Raises:
        BodyError: if a field comes twice.
    """
    form = await request.form(
        max_files=MAX_FILES, max_fields=MAX_FIELDS, max_part_size=MAX_FIELD_BYTES
    )
    name = repeated(name for name, _ in form.multi_items())
    if name is not None:
        await form.close()
        raise BodyError(f"{name[:64]} must be given once", param=name[:64])
    return form


async def json_of_form(request: Request, model: type[BaseModel]) -> dict[str, Any]:
    """The object that a request's form stands for: numbers and truth values as JSON has them, text
    as it is, files as their bytes. An empty field is one that was left out.

    Args:
        request: with the form.
        model: of the object.

    Raises:
        BodyError: if a field comes twice.
    """
    form = await read_form(request)
    values: dict[str, Any] = {}
    try:
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                values[name] = await value.read()
            elif value:
                values[name] = value_of_text(model, name, value)
    finally:
        await form.close()
    return values


def value_of_text(model: type[BaseModel], name: str, text: str) -> Any:
    """The value of JSON that the text in a field of a form stands for."""
    return text if _is_text(model, name) else neutral.of_form(name, text)


def _is_text(model: type[BaseModel], name: str) -> bool:
    field = model.model_fields.get(name)
    return field is not None and not _types(field.annotation) & {int, float, bool}


def _types(annotation: Any) -> set[Any]:
    """A type, or all that a union and what is annotated are made of."""
    found: set[Any] = {annotation} if isinstance(annotation, type) else set()
    return found.union(*map(_types, get_args(annotation)))
