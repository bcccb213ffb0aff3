# SPDX-License-Identifier: Apache-2.0
"""A request's prompt and sampling parameters: what it gives, and what the model's files say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from vllm.entrypoints.speech.media import Clip
from vllm.multistream.refusal import RequestRefused, refuses
from vllm.multistream.spec import GENERATION_DEFAULTS, SpeechSpec, TaskPrompt
from vllm.multistream.tasks import choose_task, emits
from vllm.sampling_params import RequestOutputKind, SamplingParams

if TYPE_CHECKING:
    from vllm.config import ModelConfig

DEFAULT_VOICE = "default"
"""What OpenAI's clients, which must name a voice, may say for the model's own default."""

_NEUTRAL = {"text": {"temperature": 0.0}, "audio": {"temperature": 1.0}}


@dataclass(frozen=True)
class SpeechInput:
    """What a client asks for.

    Attributes:
        wanted: what is to be made, any of "text" and "audio".
        text, clip: what is given.
        voice: name of a voice.
        task: name of a task; None: the one that fits.
        sampling: SamplingParams fields that are given.
    """

    wanted: frozenset[str]
    text: str | None = None
    clip: Clip | None = None
    voice: str | None = None
    task: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)


def plan_request(
    spec: SpeechSpec, defaults: Mapping[str, Mapping[str, Any]], asked: SpeechInput
) -> tuple[dict[str, Any], SamplingParams]:
    """The prompt and the sampling parameters of a request, whose outputs are deltas.

    Args:
        spec: the model's specification.
        defaults: see `task_defaults`.
        asked: what the client asks for.

    Raises:
        RequestRefused: naming the field.
    """
    voice, task = asked.voice, asked.task
    if voice == DEFAULT_VOICE and voice not in spec.voices:
        voice = None
    if task is None:
        given = {"text": asked.text, "audio": asked.clip}
        names = {name for name, value in given.items() if value is not None}
        task = choose_task(spec, names, asked.wanted, voice=voice is not None)
    elif task not in defaults:
        raise RequestRefused(f"task must be one of {sorted(defaults)}, not {task!r}")
    options = {"task": task} | ({} if voice is None else {"voice": voice})
    prompt: dict[str, Any] = {"prompt": asked.text or "", "mm_processor_kwargs": options}
    if asked.clip is not None:
        prompt["multi_modal_data"] = {"audio": (asked.clip.samples, asked.clip.sample_rate)}
    return prompt, make_params(defaults[task], asked.sampling)


def task_defaults(model_config: ModelConfig) -> dict[str, dict[str, Any]]:
    """By task, the sampling parameters for what a request leaves out.

    The later of these counts: temperature 1 for audio and 0 for text; generation_config.json; the
    model's own `generation_defaults` of the task; what the server was told by
    --override-generation-config. With --generation-config vllm, neither file counts.
    `guidance_scale` of generation_config.json holds for tasks that make audio.
    """
    from vllm.multistream.spec import multistream_spec

    spec = multistream_spec(model_config)
    assert spec is not None
    use_files = model_config.generation_config != "vllm"
    of_file = _known(model_config.try_get_generation_config()) if use_files else {}
    of_server = _known(model_config.override_generation_config or {})
    return {task.name: _of_task(spec, task, use_files, of_file, of_server) for task in spec.tasks}


def _of_task(
    spec: SpeechSpec,
    task: TaskPrompt,
    use_files: bool,
    of_file: Mapping[str, Any],
    of_server: Mapping[str, Any],
) -> dict[str, Any]:
    makes_audio = "audio" in emits(spec.layout, task)

    def fitting(values: Mapping[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in values.items() if makes_audio or k != "guidance_scale"}

    defaults: dict[str, Any] = dict(_NEUTRAL["audio" if makes_audio else "text"])
    if use_files:
        defaults |= fitting(of_file) | dict(spec.generation_defaults.get(task.name, {}))
    return defaults | fitting(of_server)


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    named = {"max_tokens" if key == "max_new_tokens" else key: v for key, v in values.items()}
    return {key: v for key, v in named.items() if key in GENERATION_DEFAULTS and v is not None}


@refuses
def make_params(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> SamplingParams:
    """Sampling parameters for a streamed request.

    Args:
        defaults: of the request's task.
        given: what the request says; wins over the defaults.

    Raises:
        RequestRefused: naming the field.
    """
    values = dict(defaults) | dict(given)
    # A temperature or the like that a request gives is meant for all streams.
    for name in ("temperature", "top_k", "top_p"):
        if name in given:
            values.pop(f"stream_{name}", None)
    if "negative_prompt" in values and values.get("guidance_scale") == 1.0:
        raise RequestRefused("negative_prompt needs a guidance_scale other than 1.0")
    return SamplingParams(output_kind=RequestOutputKind.DELTA, **values)
