# SPDX-License-Identifier: Apache-2.0
"""GET /v1/audio/capabilities: what the served model does, from its specification."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import product
from typing import Any, Literal

from pydantic import BaseModel, Field

from vllm.entrypoints.speech.server.service import SpeechService
from vllm.unison.frontend.defaults import task_defaults
from vllm.unison.frontend.errors import InvalidRequestError
from vllm.unison.frontend.tasks import choose_dialogue, choose_task, needs_voice, takes_recording
from vllm.unison.frontend.windows import WINDOW_SECONDS
from vllm.unison.model.conversation import Content, Recording, Turn
from vllm.unison.model.spec import REFERENCE_TEXT, SpeechSpec, TaskPrompt

Modality = Literal["text", "audio"]
Need = Literal["none", "optional", "required"]

_INPUTS: tuple[tuple[Modality, ...], ...] = (("text",), ("audio",), ("text", "audio"))
_OUTPUTS: tuple[Modality, ...] = ("text", "audio")


class SpeechCapability(BaseModel):
    """Text to speech."""

    recording: Need = Field(
        description="Of a voice to speak like, as ref_audio. required: it, or a recorded voice."
    )
    reference_text: Need = Field(description="What is said in that recording, as ref_text.")


class DurationCapability(BaseModel):
    """Length of the audio, in seconds, of a request in one window."""

    minimum: float
    maximum: float
    default: float


class GenerationCapability(BaseModel):
    """Audio from a description."""

    duration: DurationCapability


class GuidanceCapability(BaseModel):
    """Guidance of the audio that is made from text."""

    default_scale: float = Field(description="Of a request that gives none; 1: not guided.")
    needs_negative_prompt: bool = Field(
        description="Whether the model has no null prompt, so that guidance needs negative_prompt."
    )


class ChatAnswer(BaseModel):
    """What a message may hold, and how it can be answered."""

    inputs: tuple[Modality, ...]
    output: Modality


class ChatCapability(BaseModel):
    """Chat."""

    conversations: bool = Field(description="Whether there may be more than one message.")
    answers: tuple[ChatAnswer, ...]


class Capabilities(BaseModel):
    """What a model does; null is what it does not."""

    object: Literal["audio.capabilities"] = "audio.capabilities"
    model: str
    sample_rate: int | None = Field(description="Of the audio that it makes, in Hz.")
    channels: int | None
    speech: SpeechCapability | None
    generation: GenerationCapability | None
    transcription: bool
    continuation: bool = Field(description="Whether it goes on from a clip.")
    chat: ChatCapability
    guidance: GuidanceCapability | None
    languages: tuple[str, ...]


def capabilities_of(service: SpeechService) -> Capabilities:
    """What a server's model does."""
    return capabilities(
        service.spec,
        task_defaults(service.model_config),
        model=service.models.base_model_paths[0].name,
        max_model_len=service.model_config.max_model_len,
        sample_rate=service.sample_rate or None,
        channels=service.num_channels if service.sample_rate else None,
    )


def capabilities(
    spec: SpeechSpec,
    defaults: Mapping[str, Mapping[str, Any]],
    *,
    model: str,
    max_model_len: int,
    sample_rate: int | None,
    channels: int | None,
) -> Capabilities:
    """What a model does.

    Args:
        spec: the model's specification.
        defaults: see `task_defaults`.
        model: its served name.
        max_model_len: steps of the engine's context.
        sample_rate, channels: of its audio; None without a codec.
    """
    made = _task(spec, {"text"}, "audio") or _task(spec, {"text"}, "audio", recording=True)
    is_described = spec.frames_per_second is not None
    scale = 1.0 if made is None else float(defaults[made.name].get("guidance_scale") or 1.0)
    return Capabilities(
        model=model,
        sample_rate=sample_rate,
        channels=channels,
        speech=None if made is None or is_described else _speech(spec, made),
        generation=None
        if made is None or not is_described
        else GenerationCapability(duration=_duration(spec, defaults[made.name], max_model_len)),
        transcription=_task(spec, {"audio"}, "text") is not None,
        continuation=any(
            _task(spec, inputs, "audio") is not None for inputs in ({"audio"}, {"text", "audio"})
        ),
        chat=_chat(spec),
        guidance=None
        if made is None
        else GuidanceCapability(
            default_scale=scale, needs_negative_prompt=spec.null_prompt is None
        ),
        languages=spec.languages,
    )


def _task(
    spec: SpeechSpec,
    inputs: Collection[str],
    output: str,
    *,
    recording: bool = False,
    reference_text: bool = False,
) -> TaskPrompt | None:
    """The task that serves such requests, if there is one."""
    try:
        return choose_task(
            spec,
            inputs,
            {output},
            voice=recording,
            recording=recording,
            reference_text=reference_text,
        )
    except InvalidRequestError:
        return None


def _speech(spec: SpeechSpec, task: TaskPrompt) -> SpeechCapability:
    cloning = _task(spec, {"text"}, "audio", recording=True)
    if cloning is None or not takes_recording(spec, cloning):
        return SpeechCapability(recording="none", reference_text="none")
    text: Need = "none"
    if _task(spec, {"text"}, "audio", recording=True, reference_text=True) is not None:
        text = "required" if REFERENCE_TEXT in cloning.parts else "optional"
    needs = needs_voice(spec, task)
    return SpeechCapability(recording="required" if needs else "optional", reference_text=text)


def _duration(
    spec: SpeechSpec, defaults: Mapping[str, Any], max_model_len: int
) -> DurationCapability:
    rate = spec.frames_per_second
    assert rate is not None
    # The start column, the last steps of the delayed streams and a prefix take positions too.
    room = max_model_len - 1 - spec.layout.num_flush_steps
    if spec.melody is not None and spec.text_encoder is not None:
        room -= spec.melody.num_positions + spec.text_encoder.max_ids
    longest = max(min(room, int(WINDOW_SECONDS * rate)), 1)
    frames = min(defaults.get("max_tokens") or longest, longest)
    return DurationCapability(
        minimum=float(1 / rate), maximum=float(longest / rate), default=float(frames / rate)
    )


def _chat(spec: SpeechSpec) -> ChatCapability:
    is_conversation = bool(spec.conversations)
    answers = [
        ChatAnswer(inputs=inputs, output=output)
        for inputs, output in product(_INPUTS, _OUTPUTS)
        if (
            _answers(spec, inputs, output)
            if is_conversation
            else _task(spec, inputs, output) is not None
        )
    ]
    return ChatCapability(conversations=is_conversation, answers=tuple(answers))


def _answers(spec: SpeechSpec, inputs: Collection[str], output: str) -> bool:
    """Whether a conversation in which the user says such a thing can be answered so."""
    said: dict[str, Content] = {"text": "a", "audio": Recording(None)}
    turn = Turn("user", tuple(said[modality] for modality in inputs))
    try:
        choose_dialogue(spec, [turn], {output})
    except InvalidRequestError:
        return False
    return True
