# SPDX-License-Identifier: Apache-2.0
"""A request's prompt and sampling parameters: what it gives, and what the model's files say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm.entrypoints.speech.media import Clip
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.unison.frontend.errors import InvalidRequestError, reports_invalid_request
from vllm.unison.frontend.tasks import ENGINE_NAMES, FieldNames, choose_task
from vllm.unison.model.spec import SpeechSpec

DEFAULT_VOICE = "default"
"""What OpenAI's clients, which must name a voice, may say for the model's own default."""


@dataclass(frozen=True)
class SpeechInput:
    """What a client asks for.

    Attributes:
        wanted: what is to be made, any of "text" and "audio".
        text, clip: what is given.
        voice: name of a voice.
        task: name of a task; None: the one that fits.
        sampling: SamplingParams fields that are given.
        language: code of the language that is spoken.
        fields: what the request calls these, for errors.
    """

    wanted: frozenset[str]
    text: str | None = None
    clip: Clip | None = None
    voice: str | None = None
    task: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    language: str | None = None
    fields: FieldNames = ENGINE_NAMES


def plan_request(
    spec: SpeechSpec,
    defaults: Mapping[str, Mapping[str, Any]],
    asked: SpeechInput,
    voice_aliases: Mapping[str, str] | None = None,
) -> tuple[dict[str, Any], SamplingParams]:
    """The prompt and the sampling parameters of a request, whose outputs are deltas.

    Args:
        spec: the model's specification.
        defaults: see `task_defaults`.
        asked: what the client asks for.
        voice_aliases: names that stand for the model's voices.

    Raises:
        InvalidRequestError: naming the field.
    """
    if asked.language is not None:
        check_language(spec, asked.language)
    voice = _voice(spec, asked, voice_aliases or {})
    given = {"text": asked.text, "audio": asked.clip}
    names = {name for name, value in given.items() if value is not None}
    task = choose_task(
        spec,
        names,
        asked.wanted,
        name=asked.task,
        voice=voice is not None,
        fields=asked.fields,
    ).name
    options = {"task": task} | ({} if voice is None else {"voice": voice})
    prompt: dict[str, Any] = {"prompt": asked.text or "", "mm_processor_kwargs": options}
    if asked.clip is not None:
        prompt["multi_modal_data"] = {"audio": (asked.clip.samples, asked.clip.sample_rate)}
    return prompt, make_params(defaults[task], asked.sampling)


def _voice(spec: SpeechSpec, asked: SpeechInput, aliases: Mapping[str, str]) -> str | None:
    if asked.voice is None or asked.voice in spec.voices:
        return asked.voice
    if asked.voice in aliases:
        return aliases[asked.voice]
    if asked.voice == DEFAULT_VOICE:
        return None
    known = sorted({*spec.voices, *aliases, DEFAULT_VOICE})
    raise InvalidRequestError(f"{asked.fields.voice} must be one of {known}, not {asked.voice!r}")


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
def make_params(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> SamplingParams:
    """Sampling parameters for a streamed request.

    Args:
        defaults: of the request's task.
        given: what the request says; wins over the defaults.

    Raises:
        InvalidRequestError: naming the field.
    """
    values = {"max_tokens": None} | dict(defaults) | dict(given)
    # A temperature or the like that a request gives is meant for all streams.
    for name in ("temperature", "top_k", "top_p"):
        if name in given:
            values.pop(f"stream_{name}", None)
    if "negative_prompt" in values and values.get("guidance_scale") == 1.0:
        raise InvalidRequestError("negative_prompt needs a guidance_scale other than 1.0")
    params = SamplingParams(output_kind=RequestOutputKind.DELTA, **values)
    params.max_tokens_is_default = "max_tokens" not in given
    return params
