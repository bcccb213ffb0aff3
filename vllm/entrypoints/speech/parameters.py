# SPDX-License-Identifier: Apache-2.0
"""A request's prompt and sampling parameters: what it gives, and what the model's files say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm.entrypoints.speech.media import Clip
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.unison.frontend.errors import InvalidRequestError, reports_invalid_request
from vllm.unison.frontend.prompts import EXTEND_STRIDE
from vllm.unison.frontend.tasks import ENGINE_NAMES, FieldNames, choose_task
from vllm.unison.model.spec import SpeechSpec

DEFAULT_VOICE = "default"
"""What OpenAI's clients, which must name a voice, may say for the model's own default."""


@dataclass(frozen=True)
class SpeechInput:
    """What a client asks for.

    Attributes:
        modalities: of the output, any of "text" and "audio".
        text, clip: the inputs.
        voice: name of a voice.
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
    voice: str | None = None
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
) -> tuple[dict[str, Any], SamplingParams]:
    """The prompt and the sampling parameters of a request, whose outputs are deltas.

    Args:
        spec: the model's specification.
        defaults: see `task_defaults`.
        request: what the client asks for.
        voice_aliases: names that stand for the model's voices.

    Raises:
        InvalidRequestError: naming the field.
    """
    if request.language is not None:
        check_language(spec, request.language)
    voice = _voice(spec, request, voice_aliases or {})
    inputs = {"text": request.text, "audio": request.clip}
    names = {name for name, value in inputs.items() if value is not None}
    task = choose_task(
        spec,
        names,
        request.modalities,
        name=request.task,
        voice=voice is not None,
        fields=request.fields,
    ).name
    options: dict[str, Any] = {"task": task} | ({} if voice is None else {"voice": voice})
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
    prompt: dict[str, Any] = {"prompt": request.text or "", "mm_processor_kwargs": options}
    if request.clip is not None:
        prompt["multi_modal_data"] = {"audio": (request.clip.samples, request.clip.sample_rate)}
    return prompt, make_params(defaults[task], request.sampling)


def _voice(spec: SpeechSpec, request: SpeechInput, aliases: Mapping[str, str]) -> str | None:
    if request.voice is None or request.voice in spec.voices:
        return request.voice
    if request.voice in aliases:
        return aliases[request.voice]
    if request.voice == DEFAULT_VOICE:
        return None
    known = sorted({*spec.voices, *aliases, DEFAULT_VOICE})
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
