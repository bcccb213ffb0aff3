# SPDX-License-Identifier: Apache-2.0
"""What a row asks for, by the rules of the HTTP routes: the fields of a row are those of a request.

Two fields are a row's own: `id`, which marks it, and the path of a file in place of the file.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from fastapi import UploadFile
from pydantic import BaseModel, ValidationError

from vllm.entrypoints.speech.batch.rows import Row
from vllm.entrypoints.speech.media import AudioLimits, Clip, decode_base64, decode_file
from vllm.entrypoints.speech.parameters import Recording, SpeechInput
from vllm.entrypoints.speech.server.endpoints.speech import speech_input
from vllm.entrypoints.speech.server.endpoints.transcriptions import transcription_input
from vllm.entrypoints.speech.server.forms import value_of_text
from vllm.entrypoints.speech.server.schema_errors import describe
from vllm.entrypoints.speech.server.schemas import SpeechRequest, TranscriptionForm
from vllm.unison.frontend.errors import InvalidRequestError

Command = Literal["speak", "transcribe"]
Model = TypeVar("Model", bound=BaseModel)
MAX_ID = 256
"""Characters of an id."""
_NOT_STREAMED: Mapping[str, Any] = {"stream": False, "stream_format": "audio"}
_ANSWER_OF_TEXT: Mapping[str, Any] = {"response_format": "json", "stream": False}


@dataclass(frozen=True)
class RowRules:
    """What holds for all rows of a batch.

    Attributes:
        command: what is done with them.
        folder: to which paths are relative.
        defaults: fields that a row leaves out.
        model: the name that a row may give as its model.
    """

    command: Command
    folder: Path
    defaults: Mapping[str, Any] = field(default_factory=dict)
    model: str = ""


@dataclass(frozen=True)
class RowRequest:
    """What a row asks for.

    Attributes:
        inputs: of the engine's request.
        audio_format: of the file that is made.
    """

    inputs: SpeechInput
    audio_format: str = "wav"


def row_id(row: Row) -> str | int | None:
    """A row's id, if it has one that may stand in a manifest.

    Raises:
        InvalidRequestError: if it has another one.
    """
    value = row.values.get("id")
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    if not (isinstance(value, str) and 0 < len(value) <= MAX_ID and value.isprintable()):
        words = f"id must be an integer or printable text of 1 to {MAX_ID} characters"
        raise InvalidRequestError(words)
    return value


def row_seed(seed: int, row: Row) -> int:
    """The seed of a row that gives none: a function of the batch's seed and the row's id, or its
    number if it has none, and of nothing else."""
    name = row_id(row)
    key = f"{seed}:row {row.index}" if name is None else f"{seed}:id {name}"
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") % 2**62


def read_request(rules: RowRules, row: Row, context_seconds: float = math.inf) -> RowRequest:
    """What a row asks for.

    Args:
        rules: of the batch.
        row: that can be read.
        context_seconds: length of the longest recording of a voice.

    Raises:
        InvalidRequestError: naming the field.
        OSError: if a file cannot be read.
    """
    if row.error is not None:
        raise InvalidRequestError(row.error)
    row_id(row)
    values = {name: value for name, value in row.values.items() if name != "id"}
    if rules.command == "speak":
        return _speech(rules, values, row.is_text, context_seconds)
    return _transcription(rules, values)


def _speech(
    rules: RowRules, values: dict[str, Any], is_text: bool, context_seconds: float
) -> RowRequest:
    names = _rename(values, "text", "input")
    names |= _open_file(rules, values, "ref_audio", "ref_audio_path")
    if is_text:
        values = {
            name: value_of_text(SpeechRequest, name, value) if isinstance(value, str) else value
            for name, value in values.items()
        }
    _must_be(values, _NOT_STREAMED)
    request = _validated(SpeechRequest, {**rules.defaults, **values}, names)
    _check_model(rules, request.model)
    recording: Recording | None = None
    if request.ref_audio is not None:
        limits = AudioLimits.from_environment(context_seconds)
        clip = _clip(request.ref_audio, limits, names.get("ref_audio", "ref_audio"))
        recording = Recording((clip.samples, clip.sample_rate), request.ref_text)
    inputs = speech_input(request, request.input, recording)
    return RowRequest(_with_names(inputs, names), request.response_format)


def _transcription(rules: RowRules, values: dict[str, Any]) -> RowRequest:
    _must_be(values, _ANSWER_OF_TEXT)
    names = _rename(values, "audio", "file")
    names |= _open_file(rules, values, "file", "path")
    data = values.get("file")
    if not isinstance(data, (str, bytes)) or not data:
        name = names.get("file", "audio")
        raise InvalidRequestError(f"{name} must be an audio file: its bytes, or base64 of them")
    values["file"] = UploadFile(io.BytesIO(b""))
    form = _validated(TranscriptionForm, {**rules.defaults, **values}, names)
    _check_model(rules, form.model)
    clip = _clip(data, AudioLimits.from_environment(math.inf), names.get("file", "file"))
    return RowRequest(_with_names(transcription_input(form, clip), names))


def _rename(values: dict[str, Any], own: str, name: str) -> dict[str, str]:
    """Give a field the route's name; returns what the row calls it."""
    if own not in values:
        return {}
    if name in values:
        raise InvalidRequestError(f"{own} must not be given beside {name}")
    values[name] = values.pop(own)
    return {name: own}


def _open_file(rules: RowRules, values: dict[str, Any], name: str, path: str) -> dict[str, str]:
    """Put the file that a row names by its path in the place of a field that holds one."""
    if path not in values:
        return {}
    if name in values:
        raise InvalidRequestError(f"{path} must not be given beside the file itself")
    place = values.pop(path)
    if not isinstance(place, str) or not place or "\0" in place:
        raise InvalidRequestError(f"{path} must be the path of a file, not {str(place)[:64]!r}")
    try:
        values[name] = (rules.folder / place).read_bytes()
    except OSError as error:
        raise InvalidRequestError(f"{path}: {error.strerror}: {place[:256]!r}") from error
    return {name: path}


def _must_be(values: dict[str, Any], accepted: Mapping[str, Any]) -> None:
    """Take out what says how a route answers, where it says what a batch does anyway."""
    for name, value in accepted.items():
        given = values.pop(name, None)
        if given not in (None, value):
            shown = str(given)[:64] if isinstance(given, bytes) else json.dumps(given)[:64]
            words = f"{name} must be {json.dumps(value)} in a batch, not {shown}"
            raise InvalidRequestError(words)


def _check_model(rules: RowRules, model: str | None) -> None:
    if model not in (None, rules.model):
        raise InvalidRequestError(f"model must be {rules.model}, which this batch runs")


def _clip(data: str | bytes, limits: AudioLimits, name: str) -> Clip:
    if isinstance(data, str):
        data = decode_base64(data, limits, name)
    return decode_file(data, limits, name)


def _validated(model: type[Model], values: Mapping[str, Any], names: Mapping[str, str]) -> Model:
    try:
        return model.model_validate(values)
    except ValidationError as errors:
        error: dict[str, Any] = dict(errors.errors(include_url=False)[0])
        error["loc"] = ("body", *error["loc"])
        message, name = describe(error, values)
        if name is None:
            raise InvalidRequestError(message.replace("body", "row", 1)) from errors
        rest = message.removeprefix(name)
        raise InvalidRequestError(names.get(name, name) + rest) from errors


def _with_names(inputs: SpeechInput, names: Mapping[str, str]) -> SpeechInput:
    """The same, with the row's names of its fields for errors."""
    fields = inputs.fields
    fields = replace(
        fields,
        text=names.get(fields.text, fields.text),
        audio=names.get(fields.audio, fields.audio),
        voice=names.get(fields.voice, fields.voice),
    )
    return replace(inputs, fields=fields)


def check_defaults(rules: RowRules) -> None:
    """Refuse fields for all rows that no row may have.

    Raises:
        InvalidRequestError: naming the field.
    """
    model: type[BaseModel] = SpeechRequest
    values: dict[str, Any] = {"input": "a text"}
    if rules.command == "transcribe":
        model, values = TranscriptionForm, {"file": UploadFile(io.BytesIO(b""))}
    _validated(model, {**values, **rules.defaults}, {})
