# SPDX-License-Identifier: Apache-2.0
"""What clients send: OpenAI's fields, and those of guidance and sampling.

Fields that these models have nothing for are accepted at neutral values (see `neutral`) and refused
at others, as unknown ones are, so that none is ignored without a word.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, Self

from fastapi import UploadFile
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    PlainSerializer,
    PlainValidator,
    Tag,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import InitErrorDetails, PydanticCustomError

from vllm.entrypoints.speech.server import neutral
from vllm.entrypoints.speech.server.errors import MAX_NAME
from vllm.unison.messages.sampling_fields import RANGES

MAX_INPUT_CHARACTERS = 4096
"""OpenAI's limit on the text of a speech request."""
MAX_CLIPS = 10
"""Clips of a request; OpenAI's limit on images."""


def _bounds(name: str) -> Any:
    """The range of a sampling field as the engine has it."""
    accepted = RANGES[name]
    low: dict[str, Any] = {"gt" if accepted.low_is_open else "ge": accepted.low}
    finite: dict[str, Any] = {} if accepted.is_integer else {"allow_inf_nan": False}
    return Field(**low, le=accepted.high, **finite)


def _not_blank(text: str) -> str:
    if not text.strip():
        raise PydanticCustomError("blank", "must hold more than spaces and line ends")
    return text


def _file(value: Any) -> str | bytes:
    if not isinstance(value, (str, bytes)):
        raise PydanticCustomError("file", "must be base64, a data URI or, in a form, a file")
    if not value:
        raise PydanticCustomError("file", "must not be empty")
    return value


Temperature = Annotated[float, _bounds("temperature")]
TopK = Annotated[int, _bounds("top_k")]
TopP = Annotated[float, _bounds("top_p")]
Seed = Annotated[int, _bounds("seed")]
MaxTokens = Annotated[int, _bounds("max_tokens")]
Duration = Annotated[float, Field(gt=0, allow_inf_nan=False)]
GuidanceScale = Annotated[float, _bounds("guidance_scale")]
RepeatWindow = Annotated[int, _bounds("ras_win_len")]
MaxRepeats = Annotated[int, _bounds("ras_win_max_num_repeat")]
Text = Annotated[
    str, Field(min_length=1, max_length=MAX_INPUT_CHARACTERS), AfterValidator(_not_blank)
]
AudioFile = Annotated[
    str | bytes,
    PlainValidator(_file),
    WithJsonSchema({"type": "string", "minLength": 1}),
    PlainSerializer(lambda data: data if isinstance(data, str) else f"{len(data)} bytes"),
]
"""Base64 of a file, or in a form the file."""
Name = Annotated[str, Field(min_length=1, max_length=256)]
ModelName = Annotated[
    Name | None, Field(description="The served name. Left out: the served model; never empty.")
]
Language = Annotated[str, Field(min_length=1, max_length=64)]

SpeechFormat = Literal["wav", "pcm", "flac", "mp3", "opus", "aac"]
ChatAudioFormat = Literal["wav", "pcm16", "flac", "mp3", "opus", "aac"]
TranscriptionFormat = Literal["json", "text", "verbose_json", "srt", "vtt"]


def refused_at(location: tuple[int | str, ...], kind: str, words: str) -> ValidationError:
    """A validator's error of a field inside of what it validates."""
    # The words are no template: what clients write may hold braces.
    error = PydanticCustomError("refused", "{words}", {"words": words, "kind": kind})
    details = InitErrorDetails(type=error, loc=location, input=None)
    return ValidationError.from_exception_data("request", [details])


class Body(BaseModel):
    """An object of a request: null is a field that was left out, and unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, data: Any) -> Any:
        return _known(cls.model_fields, data) if isinstance(data, Mapping) else data


class _Request(Body):
    """The body of a request, which may hold neutral fields."""

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        return _known(cls.model_fields, _without_neutral(cls.model_fields, data))


def _known(fields: Mapping[str, FieldInfo], data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that were given.

    Raises:
        ValidationError: for the first that is unknown; not for each, as there may be any number.
    """
    known = _by_alias(fields)
    values = {}
    for name, value in data.items():
        if name not in known:
            raise refused_at((name[:MAX_NAME],), "unknown", "is no field of this request")
        if value is not None or known[name].is_required():
            values[name] = value
    return values


def _without_neutral(fields: Collection[str], data: Mapping[str, Any]) -> dict[str, Any]:
    """The fields but for those of the table of neutral values, where they are neutral."""
    values = {}
    for name, value in data.items():
        if name in fields or not neutral.is_known(name):
            values[name] = value
        elif not neutral.is_neutral(name, value):
            words = f"must be {neutral.accepted(name)}: no other value is supported here"
            raise refused_at((name,), "neutral", words)
    return values


def _by_alias(fields: Mapping[str, FieldInfo]) -> dict[str, FieldInfo]:
    return {info.alias or name: info for name, info in fields.items()}


class VoiceId(Body):
    """A voice as OpenAI's clients may also name it."""

    id: Name


# Cases of a union have names that no field has: they are part of pydantic's locations of errors.
Voice = Annotated[
    Annotated[Name, Tag("case:name")] | Annotated[VoiceId, Tag("case:object")],
    Discriminator(
        lambda value: {str: "case:name", dict: "case:object"}.get(type(value)),
        custom_error_type="voice",
        custom_error_message="must be a voice's name, or an object with its id",
    ),
]


class SamplingFields(_Request):
    """What SamplingParams calls by the same names; None is the model's default."""

    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    max_tokens: MaxTokens | None = None
    guidance_scale: GuidanceScale | None = None
    negative_prompt: Text | None = None
    ras_win_len: Annotated[
        RepeatWindow | None,
        Field(description="Steps in which repetitions of a code are counted; 0: none are."),
    ] = None
    ras_win_max_num_repeat: Annotated[
        MaxRepeats | None,
        Field(description="Repetitions with which a code is drawn again, without temperature."),
    ] = None

    def sampling(self) -> dict[str, Any]:
        """The sampling fields that were given."""
        return self.model_dump(include=set(SamplingFields.model_fields), exclude_none=True)


class AudioFields(SamplingFields):
    """What requests for audio have in common: how much of it, and how it is sent."""

    model: ModelName = None
    duration: Annotated[
        Duration | None,
        Field(
            description="Seconds of audio, in place of max_tokens, for models whose audio ends by "
            "nothing but its length."
        ),
    ] = None
    extend_stride: Annotated[
        Duration | None,
        Field(
            description="Seconds by which a window moves on, for audio longer than one window "
            "(30 seconds), with duration or max_tokens."
        ),
    ] = None
    response_format: SpeechFormat = "wav"
    stream_format: Literal["audio", "sse"] = "audio"
    task: Annotated[Name | None, Field(description="A task of the model's config.json.")] = None

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.duration is not None and self.max_tokens is not None:
            raise refused_at(("duration",), "combination", "must not be given beside max_tokens")
        return self


class SpeechFields(AudioFields):
    """How a text is to be spoken."""

    voice: Voice | None = None
    ref_audio: Annotated[
        AudioFile | None,
        Field(
            description="A recording of the voice to speak with, in place of a voice's name: an "
            "audio file in base64 or as a data URI; in a form, the file."
        ),
    ] = None
    ref_text: Annotated[
        Text | None, Field(description="What is said in ref_audio, if the model takes it.")
    ] = None
    speed: Annotated[
        float, Field(ge=1, le=1, description="Only 1.0: these models have no control of speed.")
    ] = 1.0
    language: Annotated[
        Language | None, Field(description="A language that the model's config.json names.")
    ] = None

    @model_validator(mode="after")
    def _text_of_a_recording(self) -> Self:
        if self.ref_text is not None and self.ref_audio is None:
            raise refused_at(("ref_text",), "combination", "must be given beside ref_audio")
        return self


class SpeechRequest(SpeechFields):
    """Body of POST /v1/audio/speech."""

    input: Text
    stream: Annotated[
        bool,
        Field(
            description="true: audio is sent while it is made. false: the whole file at once, "
            "whose header gives its length."
        ),
    ] = True

    @model_validator(mode="after")
    def _events_are_streamed(self) -> Self:
        if self.stream_format == "sse" and not self.stream:
            raise refused_at(("stream",), "combination", "must be true with stream_format 'sse'")
        return self


class GenerationRequest(AudioFields):
    """Body of POST /v1/audio/generations."""

    prompt: Annotated[Text, Field(description="What the audio is to be.")]
    n: Annotated[
        int,
        Field(
            ge=1,
            le=MAX_CLIPS,
            description="Clips to make. More than one come as JSON, each a whole file in base64.",
        ),
    ] = 1
    stream: Annotated[
        bool | None,
        Field(
            description="As for speech: true, unless n is more than 1, which is sent when all is "
            "made."
        ),
    ] = None

    @model_validator(mode="after")
    def _combinations(self) -> Self:
        if self.n > 1 and self.stream:
            raise refused_at(("stream",), "combination", f"must be false with n {self.n}")
        if self.stream_format == "sse" and not self.is_streamed:
            why = f"n {self.n}" if self.n > 1 else "stream false"
            words = f"must be 'audio' with {why}"
            raise refused_at(("stream_format",), "combination", words)
        last = RANGES["seed"].high - self.n + 1
        if self.seed is not None and self.seed > last:
            words = f"must be at most {last} with n {self.n}: clip i has the seed + i"
            raise refused_at(("seed",), "combination", words)
        return self

    @property
    def is_streamed(self) -> bool:
        """Whether audio is sent while it is made."""
        return self.n == 1 if self.stream is None else self.stream


class TextPart(Body):
    """Text of a message."""

    type: Literal["text"]
    text: Annotated[str, Field(max_length=MAX_INPUT_CHARACTERS)]


class InputAudio(Body):
    """An audio file, in base64. The format is read from the file itself."""

    data: Annotated[str, Field(min_length=1)]
    format: Annotated[str | None, Field(max_length=64)] = None


class InputAudioPart(Body):
    """Audio of a message."""

    type: Literal["input_audio"]
    input_audio: InputAudio


_PART_TYPES = ("text", "input_audio")


def _typed_part(part: Any) -> Any:
    if not isinstance(part, dict):
        raise refused_at((), "type", "must be an object")
    if "type" not in part:
        raise refused_at(("type",), "type", "is required")
    if part["type"] not in _PART_TYPES:
        kind = part["type"]
        shown = f", not {kind[:MAX_NAME]!r}" if isinstance(kind, str) else ""
        raise refused_at(("type",), "type", f"must be one of {list(_PART_TYPES)}{shown}")
    return part


Part = Annotated[
    Annotated[TextPart, Tag("case:text")] | Annotated[InputAudioPart, Tag("case:input_audio")],
    Discriminator(lambda part: f"case:{part['type']}"),
    BeforeValidator(_typed_part),
]
Content = Annotated[
    Annotated[Text, Tag("case:text")]
    | Annotated[list[Part], Field(min_length=1, max_length=64), Tag("case:parts")],
    Discriminator(
        lambda content: {str: "case:text", list: "case:parts"}.get(type(content)),
        custom_error_type="content",
        custom_error_message="must be text, or a list of parts of type 'text' or 'input_audio'",
    ),
]


class ChatMessage(Body):
    """The message that is answered, or one before it."""

    role: Literal["system", "scene", "user", "assistant"]
    content: Content
    name: Name | None = None


class ChatAudio(Body):
    """How audio is answered."""

    voice: Voice | None = None
    format: ChatAudioFormat | None = None


class StreamOptions(Body):
    """Options of a streamed answer."""

    include_usage: bool = False
    include_obfuscation: Annotated[
        bool, Field(description="Not used: nothing is added to hide the length of an answer.")
    ] = False
    continuous_usage_stats: Annotated[
        Literal[False] | None, Field(description="Usage comes once, with the last chunk.")
    ] = None


class ChatRequest(SamplingFields):
    """Body of POST /v1/chat/completions."""

    model: ModelName = None
    messages: Annotated[
        list[ChatMessage],
        Field(
            min_length=1,
            max_length=64,
            description="One, by the user, unless the model has a task for conversations.",
        ),
    ]
    modalities: Annotated[
        list[Literal["text", "audio"]] | None, Field(min_length=1, max_length=2)
    ] = None
    audio: ChatAudio | None = None
    max_completion_tokens: MaxTokens | None = None
    n: Annotated[int, Field(ge=1, le=1)] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    task: Name | None = None


class TranscriptionForm(BaseModel):
    """Form of POST /v1/audio/transcriptions.

    An empty field of a form is one that was left out.
    """

    model_config = ConfigDict(extra="forbid")

    file: UploadFile
    model: ModelName = None
    language: Annotated[
        Language | None, Field(description="A language that the model's config.json names.")
    ] = None
    response_format: TranscriptionFormat = "json"
    timestamp_granularities: Annotated[
        list[Literal["segment"]],
        Field(
            alias="timestamp_granularities[]",
            max_length=8,
            description="Only segments, which verbose_json has anyway: these models give no times.",
        ),
    ] = []
    stream: bool = False
    stream_include_usage: Annotated[
        bool, Field(description="vLLM's: events in its own shape, ending with usage.")
    ] = False
    stream_continuous_usage_stats: Annotated[
        bool, Field(description="vLLM's: the same, with usage in each event.")
    ] = False
    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    max_tokens: MaxTokens | None = None
    max_completion_tokens: MaxTokens | None = None
    task: Name | None = None

    @model_validator(mode="before")
    @classmethod
    def _known_fields(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        own = _by_alias(cls.model_fields)
        values = {
            name: value if name in own else neutral.of_form(name, value)
            for name, value in data.items()
            if not _is_empty(value)
        }
        return _known(cls.model_fields, _without_neutral(own, values))

    @model_validator(mode="after")
    def _combinations(self) -> TranscriptionForm:
        if self.stream and self.response_format not in ("json", "text"):
            words = f"must be false with response_format '{self.response_format}'"
            raise refused_at(("stream",), "combination", words)
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            words = "must not be given beside max_completion_tokens"
            raise refused_at(("max_tokens",), "combination", words)
        return self

    def sampling(self) -> dict[str, Any]:
        """The sampling fields that were given, by their names in SamplingParams."""
        names = {"temperature", "top_k", "top_p", "seed", "max_tokens"}
        values = self.model_dump(include=names, exclude_none=True)
        if self.max_completion_tokens is not None:
            values["max_tokens"] = self.max_completion_tokens
        return values


def _is_empty(value: Any) -> bool:
    """Whether a field of a form, or each of its values, has nothing in it."""
    return all(_is_empty(item) for item in value) if isinstance(value, list) else value == ""


def voice_name(voice: str | VoiceId | None) -> str | None:
    """The name that either form gives."""
    return voice.id if isinstance(voice, VoiceId) else voice
