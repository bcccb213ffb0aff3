# SPDX-License-Identifier: Apache-2.0
"""Messages of /v1/audio/speech/stream, named as vLLM-Omni's server names them on this route."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from vllm.entrypoints.speech.server.body import BodyError, BodyLimits, JsonReader
from vllm.entrypoints.speech.server.errors import error_body, error_object
from vllm.entrypoints.speech.server.schema_errors import describe
from vllm.entrypoints.speech.server.schemas import Body, SpeechFields, Text

MAX_TEXT_CHARACTERS = 16384
"""Of one message; a sentence has its own limit."""

Event = dict[str, Any]


class SessionConfig(SpeechFields):
    """How the text that follows is to be spoken."""

    type: Literal["session.config"]
    stream_format: Literal["audio"] = "audio"
    stream: Annotated[
        Literal[True], Field(description="See stream_audio, which asks for whole files.")
    ] = True
    stream_audio: Annotated[
        bool,
        Field(
            description="true: audio is sent while it is made. false: each sentence as a whole "
            "file, whose header gives its length."
        ),
    ] = True
    split_granularity: Annotated[
        Literal["sentence", "none"],
        Field(description="none: what comes until input.done is spoken as one text."),
    ] = "sentence"


class InputText(Body):
    """The next piece of the text."""

    type: Literal["input.text"]
    text: Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)]


class InputDone(Body):
    """The utterance is complete."""

    type: Literal["input.done"]


class InputCancel(Body):
    """Nothing of what was sent is to be spoken any more."""

    type: Literal["input.cancel"]


class SessionClose(Body):
    """Nothing follows."""

    type: Literal["session.close"]


class SpokenText(Body):
    """A sentence, under the rules of a speech request's text."""

    text: Text


ClientMessage = SessionConfig | InputText | InputDone | InputCancel | SessionClose
MESSAGES: dict[str, type[ClientMessage]] = {
    "session.config": SessionConfig,
    "input.text": InputText,
    "input.done": InputDone,
    "input.cancel": InputCancel,
    "session.close": SessionClose,
}


def read_message(data: str | bytes | None, limits: BodyLimits) -> ClientMessage:
    """The message that a client sent.

    Raises:
        BodyError: if it is none, naming the field.
    """
    if not isinstance(data, str):
        raise BodyError("message must be text, not bytes")
    try:
        encoded = data.encode()
    except UnicodeEncodeError:
        raise BodyError("message must be valid Unicode") from None
    if len(encoded) > limits.num_bytes:
        raise BodyError(f"message must have at most {limits.num_bytes} bytes", 413)
    reader = JsonReader(limits)
    try:
        reader.feed(encoded)
        value = reader.value()
    except BodyError as error:
        message = error.message
        if message.startswith("body "):
            message = f"message {message.removeprefix('body ')}"
        raise BodyError(message, error.status, error.param) from None
    if not isinstance(value, dict):
        raise BodyError("message must be an object")
    kind = value.get("type")
    if not isinstance(kind, str) or kind not in MESSAGES:
        raise BodyError(f"type must be one of {list(MESSAGES)}", param="type")
    try:
        return MESSAGES[kind].model_validate(value)
    except ValidationError as error:
        raise schema_error(error, value) from None


def schema_error(error: ValidationError, value: Any) -> BodyError:
    """The first error of a schema, with the field as the client wrote it."""
    first = error.errors()[0]
    message, field = describe({**first, "loc": ("body", *first["loc"])}, value)
    return BodyError(message, param=field)


def error_event(error: Exception, **where: int) -> Event:
    """What tells a client of an error: `message` for people, and OpenAI's shape.

    Args:
        error: a BodyError, or one of those that routes answer with a status.
        where: the utterance and the sentence, if one of them failed.
    """
    if isinstance(error, BodyError):
        body = error_object(error.message, error.status, error.param)
    else:
        body = error_body(error)["error"]
    return {"type": "error", **where, "message": body["message"], "error": body}
