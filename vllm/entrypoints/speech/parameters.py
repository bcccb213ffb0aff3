# SPDX-License-Identifier: Apache-2.0
"""A request's prompt and sampling parameters: what it gives, and what the model's files say."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vllm.entrypoints.speech.media import Clip
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.unison.frontend.clip_encoder import KeptClip
from vllm.unison.frontend.conversations import MESSAGES, turns_of
from vllm.unison.frontend.errors import InvalidRequestError, reports_invalid_request
from vllm.unison.frontend.prompts import EXTEND_STRIDE
from vllm.unison.frontend.tasks import ENGINE_NAMES, FieldNames, choose_dialogue, choose_task
from vllm.unison.model.spec import REFERENCE_TEXT, SpeechSpec

DEFAULT_VOICE = "default"
"""What OpenAI's clients, which must name a voice, may say for the model's own default."""


@dataclass(frozen=True)
class Recording:
    """A recording of a voice.

    Attributes:
        audio: (samples, sample_rate), or a KeptClip of them.
        text: what is said in it, if that is known.
    """

    audio: tuple[NDArray[np.float32], int] | KeptClip
    text: str | None = None


@dataclass(frozen=True)
class RecordedVoice:
    """A voice that the operator of a server adds to those of the model.

    Attributes:
        recording: that it is made of.
        display_name: what people call it.
        language: of a request that names none.
        sampling: SamplingParams fields for what a request leaves out.
    """

    recording: Recording
    display_name: str
    language: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class SpeechInput:
    """What a client asks for.

    Attributes:
        modalities: of the output, any of "text" and "audio".
        text, clip: the inputs.
        messages: turns of a conversation in place of them; see PromptBuilder.
        voice: name of a voice.
        recording: of a voice to speak with.
        task: name of a task; None: the one that fits.
        sampling: SamplingParams fields that the request sets.
        duration: seconds of audio, for a model whose audio ends by nothing but its length.
        extend_stride: seconds by which windows move on, for audio longer than one.
        language: code of the language that is spoken.
        fields: what the request calls these, for errors.
    """

    modalities: frozenset[str]
    text: str | None = None
    clip: Clip | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    voice: str | None = None
    recording: Recording | None = None
    task: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    duration: float | None = None
    extend_stride: float | None = None
    language: str | None = None
    fields: FieldNames = ENGINE_NAMES


def plan_request(
    spec: SpeechSpec,
    defaults: Mapping[str, Mapping[str, Any]],
    request: SpeechInput,
    voice_aliases: Mapping[str, str] | None = None,
    recorded_voices: Mapping[str, RecordedVoice] | None = None,
) -> tuple[dict[str, Any], SamplingParams]:
    """The prompt and the sampling parameters of a request, whose outputs are deltas.

    Args:
        spec: the model's specification.
        defaults: see `task_defaults`.
        request: what the client asks for.
        voice_aliases: names that stand for voices.
        recorded_voices: by name, those that the operator adds to the model's.

    Raises:
        InvalidRequestError: naming the field.
    """
    recorded_voices = recorded_voices or {}
    voice = _voice(spec, request, voice_aliases or {}, recorded_voices)
    recorded = None if voice is None else recorded_voices.get(voice)
    recording, sampling, language = request.recording, request.sampling, request.language
    if recorded is not None:
        recording = recorded.recording
        sampling = {**recorded.sampling, **sampling}
        language = recorded.language if language is None else language
    if language is not None:
        check_language(spec, language)
    if request.messages is not None:
        return _plan_conversation(spec, defaults, request, request.messages, voice)
    if recorded is not None:
        voice = None
    inputs = {"text": request.text, "audio": request.clip}
    names = {name for name, value in inputs.items() if value is not None}
    task = choose_task(
        spec,
        names,
        request.modalities,
        name=request.task,
        voice=voice is not None or recording is not None,
        recording=recording is not None,
        reference_text=request.recording is not None and request.recording.text is not None,
        fields=request.fields,
    )
    options: dict[str, Any] = {"task": task.name}
    if voice is not None:
        options["voice"] = voice
    if request.duration is not None:
        if spec.frames_per_second is None:
            raise InvalidRequestError("duration must not be given: the model ends its audio itself")
        if "max_tokens" in request.sampling:
            raise InvalidRequestError("duration must not be given beside max_tokens")
        options["duration"] = request.duration
    if request.extend_stride is not None:
        if spec.frames_per_second is None:
            raise InvalidRequestError(
                "extend_stride must not be given: the model ends its audio itself"
            )
        options[EXTEND_STRIDE] = request.extend_stride
    clips: dict[str, Any] = {}
    if request.clip is not None:
        clips["audio"] = (request.clip.samples, request.clip.sample_rate)
    if recording is not None:
        clips["voice"] = recording.audio
        # The text of an operator's voice is there for the tasks that have a place for it.
        if recording.text is not None and task.takes_reference_text:
            options[REFERENCE_TEXT] = recording.text
    prompt: dict[str, Any] = {"prompt": request.text or "", "mm_processor_kwargs": options}
    if clips:
        prompt["multi_modal_data"] = clips
    return prompt, make_params(defaults[task.name], sampling)


def _plan_conversation(
    spec: SpeechSpec,
    defaults: Mapping[str, Mapping[str, Any]],
    request: SpeechInput,
    messages: Sequence[Mapping[str, Any]],
    voice: str | None,
) -> tuple[dict[str, Any], SamplingParams]:
    """`plan_request` for a conversation, which has no place for a named voice."""
    turns = turns_of(messages)
    task = choose_dialogue(spec, turns, request.modalities, request.task, request.fields)
    if voice is not None:
        raise InvalidRequestError(
            f"{request.fields.voice} must not be given: task {task.name!r} has no place for one"
        )
    options = {"task": task.name, MESSAGES: list(messages)}
    prompt = {"prompt": "", "mm_processor_kwargs": options}
    return prompt, make_params(defaults[task.name], request.sampling)


def prompt_seconds(prompt: Mapping[str, Any]) -> float:
    """Length of all the audio that a prompt of `plan_request` holds."""
    clips = list(prompt.get("multi_modal_data", {}).values())
    for message in prompt["mm_processor_kwargs"].get(MESSAGES, ()):
        if not isinstance(message["content"], str):
            clips += [part["audio"] for part in message["content"] if part["type"] == "audio"]
    pairs = (clip.audio if isinstance(clip, KeptClip) else clip for clip in clips)
    return sum(samples.shape[-1] / rate for samples, rate in pairs)


def _voice(
    spec: SpeechSpec,
    request: SpeechInput,
    aliases: Mapping[str, str],
    recorded: Collection[str],
) -> str | None:
    """The name of the request's voice, the model's or a recorded one, if it names one."""
    if request.recording is not None:
        if request.voice in (None, DEFAULT_VOICE):
            return None
        raise InvalidRequestError(
            f"{request.fields.voice} must not be given beside the name of a voice"
        )
    if request.voice is None or request.voice in spec.voices or request.voice in recorded:
        return request.voice
    if request.voice in aliases:
        return aliases[request.voice]
    if request.voice == DEFAULT_VOICE:
        return None
    known = sorted({*spec.voices, *recorded, *aliases, DEFAULT_VOICE})
    raise InvalidRequestError(
        f"{request.fields.voice} must be one of {known}, not {request.voice!r}"
    )


def check_language(spec: SpeechSpec, language: str) -> None:
    """Refuse a language that the model's config.json does not name, whatever the case of letters.

    Raises:
        InvalidRequestError: naming the field.
    """
    if not spec.languages:
        raise InvalidRequestError("language must not be given: the model's config.json names none")
    if language.lower() not in spec.languages:
        raise InvalidRequestError(
            f"language must be one of {list(spec.languages)}, not {language!r}"
        )


@reports_invalid_request
def make_params(defaults: Mapping[str, Any], sampling: Mapping[str, Any]) -> SamplingParams:
    """Sampling parameters for a streamed request.

    Args:
        defaults: of the request's task.
        sampling: fields that the request sets; they win over the defaults.

    Raises:
        InvalidRequestError: naming the field.
    """
    values = {"max_tokens": None} | dict(defaults) | dict(sampling)
    # A temperature or the like that a request gives is meant for all streams.
    for name in ("temperature", "top_k", "top_p"):
        if name in sampling:
            values.pop(f"stream_{name}", None)
    if "negative_prompt" in values and values.get("guidance_scale") == 1.0:
        raise InvalidRequestError("negative_prompt needs a guidance_scale other than 1.0")
    return SamplingParams(
        output_kind=RequestOutputKind.DELTA,
        max_tokens_is_default="max_tokens" not in sampling,
        **values,
    )
