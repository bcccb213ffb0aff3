# SPDX-License-Identifier: Apache-2.0
"""What a request for a multi-stream model leaves out: the defaults of its task.

A request without sampling parameters gets all of them, one with sampling parameters but without
`max_tokens` gets that one: upstream's default of 16 tokens ends speech within its first word.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from vllm.sampling_params import SamplingParams
from vllm.unison.frontend.admission.streams import refuse_unsupported_sampling
from vllm.unison.frontend.errors import reports_invalid_request
from vllm.unison.frontend.tasks import emits
from vllm.unison.messages.sampling_fields import UNSET_MAX_TOKENS
from vllm.unison.model.spec import GENERATION_DEFAULTS, SpeechSpec, TaskPrompt, multistream_spec

if TYPE_CHECKING:
    from vllm.config import ModelConfig

_NEUTRAL = {"text": {"temperature": 0.0}, "audio": {"temperature": 1.0}}

Defaults = dict[str, dict[str, Any]]


class DefaultSamplingParams(SamplingParams):
    """Sampling parameters whose fields are those of the request's task, but for changed ones."""


@reports_invalid_request
def complete_sampling_params(
    params: SamplingParams, engine_input: Mapping[str, Any], model_config: ModelConfig
) -> None:
    """Fill in what a request leaves out; fills in nothing for a single-stream model.

    Args:
        params: the request's own copy of its sampling parameters. `max_tokens` may still be None
            afterwards: as many as the context has room for. `max_tokens_is_default` says that
            the request did not ask for the number, so that guidance may lower it.
        engine_input: the rendered prompt, with its `task` if it has one, and the `duration` that
            stands for `max_tokens` if the request gives that.
        model_config: the model's configuration.

    Raises:
        ValueError: if `min_tokens` is more than the default of `max_tokens`, or the duration is
            none.
    """
    params.max_tokens_is_default |= params.max_tokens is None
    spec = multistream_spec(model_config)
    if spec is None:
        return
    defaults = task_defaults(model_config)
    values = defaults.get(engine_input.get("task", ""), defaults[""])
    if isinstance(params, DefaultSamplingParams):
        changed = {
            name for name in GENERATION_DEFAULTS if getattr(params, name) != getattr(_PLAIN, name)
        }
        for name in values.keys() - changed - {"max_tokens"}:
            setattr(params, name, values[name])
        # Upstream's own consequences of a value, such as those of temperature 0.
        params.__post_init__()
        refuse_unsupported_sampling(params, model_config)
    is_given = params.max_tokens is not UNSET_MAX_TOKENS
    if (duration := engine_input.get("duration")) is not None:
        if is_given and not params.max_tokens_is_default:
            raise ValueError("duration and max_tokens must not both be given")
        params.max_tokens, params.max_tokens_is_default = frames_in(spec, duration), False
        if params.min_tokens > params.max_tokens:
            raise ValueError(
                f"min_tokens must be at most the {params.max_tokens} frames of duration, "
                f"not {params.min_tokens}"
            )
        return
    if is_given:
        return
    max_tokens = values.get("max_tokens")
    if max_tokens is not None and params.min_tokens > max_tokens:
        raise ValueError(
            f"min_tokens must be at most the model's default of max_tokens, {max_tokens}, "
            f"not {params.min_tokens}"
        )
    params.max_tokens, params.max_tokens_is_default = max_tokens, True


def frames_in(spec: SpeechSpec, seconds: Any) -> int:
    """Whole frames in a duration.

    Raises:
        ValueError: naming `duration`, if it has none, or the model's audio has no length to choose.
    """
    rate = spec.frames_per_second
    if rate is None:
        raise ValueError("duration must not be given: the model ends its audio itself")
    is_number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    # As it is written: 0.58 s are 29 frames of 20 ms, though 0.58 * 50 is less in floating point.
    count = int(Fraction(str(seconds)) * rate) if is_number and math.isfinite(seconds) else 0
    if count < 1:
        raise ValueError(
            f"duration must be a number of seconds, at least {float(1 / rate):g}, not {seconds!r}"
        )
    return count


_PLAIN = SamplingParams()

# By identity: configurations can be compared but not hashed.
_defaults: dict[int, Defaults] = {}


def task_defaults(model_config: ModelConfig) -> Defaults:
    """By task, the sampling parameters for what a request leaves out; "" is no task.

    The later of these counts: temperature 1 for audio and 0 for text; generation_config.json; the
    model's own `generation_defaults` of the task; what the engine was told by
    `override_generation_config`. With `generation_config="vllm"`, neither file counts.
    `guidance_scale` of generation_config.json holds for tasks that make audio.
    """
    key = id(model_config)
    if key not in _defaults:
        _defaults[key] = read_task_defaults(model_config)
        weakref.finalize(model_config, _defaults.pop, key, None)
    return _defaults[key]


def read_task_defaults(model_config: ModelConfig) -> Defaults:
    """The same, read from the model's files."""
    spec = multistream_spec(model_config)
    assert spec is not None
    use_files = model_config.generation_config != "vllm"
    of_file = _known(model_config.try_get_generation_config()) if use_files else {}
    of_server = _known(model_config.override_generation_config or {})
    tasks = {task.name: _of_task(spec, task, use_files, of_file, of_server) for task in spec.tasks}
    # A prompt of token ids says nothing of what is to be made.
    return {"": {k: v for k, v in (of_file | of_server).items() if k != "guidance_scale"}} | tasks


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
