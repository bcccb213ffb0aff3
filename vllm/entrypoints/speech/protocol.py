# SPDX-License-Identifier: Apache-2.0
"""What clients send: OpenAI's fields, and those of guidance and sampling.

Unknown fields are refused, so that none is ignored without a word.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import UploadFile
from pydantic import BaseModel, ConfigDict, Field

MAX_INPUT_CHARACTERS = 4096
"""OpenAI's limit on the text of a speech request."""
_INT32_MAX = 2**31 - 1
_INT64 = 2**63

Temperature = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
TopK = Annotated[int, Field(ge=-1, le=_INT32_MAX)]
TopP = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Seed = Annotated[int, Field(ge=-_INT64, le=_INT64 - 2)]
MaxTokens = Annotated[int, Field(ge=1, le=_INT32_MAX)]
GuidanceScale = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1, max_length=MAX_INPUT_CHARACTERS)]
Name = Annotated[str, Field(min_length=1, max_length=256)]

SpeechFormat = Literal["wav", "pcm", "flac", "mp3", "opus", "aac"]
ChatAudioFormat = Literal["wav", "pcm16", "flac", "mp3", "opus", "aac"]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class VoiceId(_Body):
    """A voice as OpenAI's clients may also name it."""

    id: Name


class SamplingFields(_Body):
    """What SamplingParams calls by the same names; None is the model's default."""

    temperature: Temperature | None = None
    top_k: TopK | None = None
    top_p: TopP | None = None
    seed: Seed | None = None
    max_tokens: MaxTokens | None = None
    guidance_scale: GuidanceScale | None = None
    negative_prompt: Text | None = None

    def sampling(self) -> dict[str, Any]:
        """The sampling fields that were given."""
        return self.model_dump(include=set(SamplingFields.model_fields), exclude_none=True)


class SpeechRequest(SamplingFields):
    """Body of POST /v1/audio/speech."""

    model: str | None = None
    input: Text
    voice: Name | VoiceId | None = None
    response_format: SpeechFormat = "wav"
    speed: Annotated[
        float, Field(ge=1, le=1, description="Only 1.0: these models have no control of speed.")
    ] = 1.0
    stream_format: Literal["audio", "sse"] = "audio"
    task: Annotated[Name | None, Field(description="A task of the model's config.json.")] = None


class TextPart(_Body):
    """Text of a message."""

    type: Literal["text"]
    text: Annotated[str, Field(max_length=MAX_INPUT_CHARACTERS)]


class InputAudio(_Body):
    """An audio file, in base64. The format is read from the file itself."""

    data: Annotated[str, Field(min_length=1)]
    format: Annotated[str | None, Field(max_length=16)] = None


class InputAudioPart(_Body):
    """Audio of a message."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class UserMessage(_Body):
    """The message that is answered."""

    role: Literal["user"]
    content: (
        Text
        | Annotated[
            list[Annotated[TextPart | InputAudioPart, Field(discriminator="type")]],
            Field(min_length=1, max_length=64),
        ]
    )
    name: Name | None = None


class ChatAudio(_Body):
    """How audio is answered."""

    voice: Name | VoiceId | None = None
    format: ChatAudioFormat | None = None


class StreamOptions(_Body):
    """Options of a streamed answer."""

    include_usage: bool = False


class ChatRequest(SamplingFields):
    """Body of POST /v1/chat/completions."""

    model: str | None = None
    messages: Annotated[
        list[UserMessage],
        Field(
            min_length=1,
            max_length=1,
            description="One: the prompts of these models have no place for a conversation.",
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
    user: Annotated[str | None, Field(max_length=256, description="Not used.")] = None


class TranscriptionForm(BaseModel):
    """Form of POST /v1/audio/transcriptions."""

    model_config = ConfigDict(extra="forbid")

    file: UploadFile
    model: str | None = None
    response_format: Literal["json", "text"] = "json"
    language: Annotated[
        Literal["en"] | None, Field(description="Not used: the model knows one language.")
    ] = None
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
    max_completion_tokens: MaxTokens | None = None
    task: Name | None = None

    def sampling(self) -> dict[str, Any]:
        """The sampling fields that were given, by their names in SamplingParams."""
        names = {"temperature", "top_k", "top_p", "seed"}
        given = self.model_dump(include=names, exclude_none=True)
        if self.max_completion_tokens is not None:
            given["max_tokens"] = self.max_completion_tokens
        return given


def voice_name(voice: str | VoiceId | None) -> str | None:
    """The name that either form gives."""
    return voice.id if isinstance(voice, VoiceId) else voice
