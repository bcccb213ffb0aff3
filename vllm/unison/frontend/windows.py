# SPDX-License-Identifier: Apache-2.0
"""Audio longer than a model was trained on: one request after another, each going on from the last.

This is audiocraft's way for MusicGen. A window of 30 seconds moves on by `extend_stride`; what the
new window shares with the one before, its overlap, is the prompt of the request for the rest of it.
The codes of all windows are decoded at once, so that no window begins anew for the codec.
"""

from __future__ import annotations

import functools
import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from vllm.renderers.inputs.preprocess import prompt_to_seq
from vllm.unison.codecs.of_model import codec_of
from vllm.unison.frontend.defaults import frames_in
from vllm.unison.frontend.errors import reports_invalid_request
from vllm.unison.frontend.prompts import EXTEND_STRIDE, PromptBuilder, stream_prompt_builder
from vllm.unison.frontend.tasks import choose_task
from vllm.unison.messages.sampling_fields import UNSET_MAX_TOKENS
from vllm.unison.messages.streams import AudioOutput
from vllm.unison.model.spec import SpeechSpec, multistream_spec

if TYPE_CHECKING:
    from vllm import LLM
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.sampling_params import SamplingParams

WINDOW_SECONDS = 30
"""What MusicGen was trained on."""

MAX_SECONDS = 3600
"""Of one request's audio."""

Codes = NDArray[np.int32]


@dataclass(frozen=True)
class Window:
    """A request of several.

    Attributes:
        start: index of its first frame, counted from the first frame of the clip, if there is one.
        num_prompt: frames that are known already.
        num_new: frames that it makes.
    """

    start: int
    num_prompt: int
    num_new: int


def plan_windows(num_given: int, num_new: int, length: int, stride: int) -> list[Window]:
    """The windows that make some frames.

    Args:
        num_given: frames of a clip to go on from.
        num_new: frames to make, at least 1.
        length: frames of a window.
        stride: frames by which a window begins after the one before, in [1, length - 1].

    Returns:
        Windows that make all new frames, one after another. A clip that fills a window is taken by
        its last `length - stride` frames.
    """
    total, known = num_given + num_new, num_given
    start = 0 if num_given < length else num_given - (length - stride)
    windows = []
    while known < total:
        end = min(start + length, total)
        windows.append(Window(start, known - start, end - known))
        start, known = start + stride, end
    return windows


def window_seed(seed: int, index: int) -> int:
    """The seed of a window: random numbers of a request follow from its seed and positions alone,
    and so those of all windows would be the same."""
    if index == 0:
        return seed
    digest = hashlib.sha256(f"{seed}:{index}".encode()).digest()
    return int.from_bytes(digest[:8], "little") % 2**62


@dataclass
class _Completion:
    """One completion of a long request, as far as it is made.

    Attributes:
        seed: of its first window.
        codes: [num_frames, num_codebooks] of the clip and of all windows.
        token_ids: of stream 0, of all windows.
        last: the output of its newest window.
    """

    seed: int
    codes: Codes
    token_ids: list[int] = field(default_factory=list)
    last: CompletionOutput | None = None

    def take(self, output: CompletionOutput) -> None:
        """Add what a window has made."""
        self.last = output
        self.token_ids += output.token_ids
        if output.audio is not None:
            self.codes = np.concatenate([self.codes, output.audio.codes])

    @property
    def has_failed(self) -> bool:
        """Whether its newest window did not come to its end."""
        return self.last is not None and self.last.finish_reason != "length"


@dataclass
class LongRequest:
    """A request that takes several windows.

    Attributes:
        prompt: without its audio and its length.
        params: its sampling parameters, with a seed.
        given: [num_frames, num_codebooks] codes of the clip that it goes on from.
        windows: of each completion.
        priority: of each window.
        completions: as many as it asks for.
        first: upstream's output of the first window.
    """

    prompt: dict[str, Any]
    params: SamplingParams
    given: Codes
    windows: list[Window]
    priority: int | None = None
    completions: list[_Completion] = field(default_factory=list)
    first: RequestOutput | None = None

    def __post_init__(self) -> None:
        assert self.params.seed is not None
        self.completions = [
            _Completion(self.params.seed + index, self.given) for index in range(self.params.n)
        ]

    def window(self, index: int, completion: int | None) -> tuple[dict[str, Any], SamplingParams]:
        """Prompt and parameters of a window of one completion, or of all (their first one)."""
        window, params = self.windows[index], self.params.clone()
        made = self.completions[completion or 0]
        params.max_tokens, params.max_tokens_is_default = window.num_new, False
        if completion is not None:
            params.n, params.seed = 1, window_seed(made.seed, index)
        known = made.codes[window.start : window.start + window.num_prompt]
        if len(known) == 0:
            return self.prompt, params
        return {**self.prompt, "multi_modal_data": {"codes": known}}, params

    def output(self, spec: SpeechSpec) -> RequestOutput:
        """The request's output, its audio decoded as a whole."""
        assert self.first is not None
        codec = codec_of(spec, "cpu")
        outputs = []
        for index, made in enumerate(self.completions):
            assert made.last is not None
            codes = made.codes[len(self.given) :]
            samples = codec.decode(torch.from_numpy(codes)).numpy()
            audio = AudioOutput(samples, codec.sample_rate, codes)
            outputs.append(replace(made.last, index=index, token_ids=made.token_ids, audio=audio))
        self.first.outputs = outputs
        return self.first


@reports_invalid_request
def long_request(
    builder: PromptBuilder,
    spec: SpeechSpec,
    max_model_len: int,
    prompt: Mapping[str, Any],
    params: SamplingParams,
) -> LongRequest:
    """A request that gives `extend_stride`, in windows.

    Args:
        builder: of the model's prompts; a clip is encoded here.
        spec: the model's specification.
        max_model_len: steps of the engine's context.
        prompt: as a request gives it.
        params: its sampling parameters; they are not changed.

    Raises:
        ValueError: naming the field and what is accepted.
    """
    rate = spec.frames_per_second
    assert rate is not None
    if spec.melody is not None:
        raise ValueError(f"{EXTEND_STRIDE} is not supported: the model does not go on from audio")
    options = dict(prompt["mm_processor_kwargs"])
    stride, duration = options.pop(EXTEND_STRIDE), options.pop("duration", None)
    unset = params.max_tokens is None or params.max_tokens is UNSET_MAX_TOKENS
    is_given = not (unset or params.max_tokens_is_default)
    if (duration is not None) == is_given:
        raise ValueError(f"{EXTEND_STRIDE} needs either duration or max_tokens")
    num_new = params.max_tokens if duration is None else frames_in(spec, duration)
    assert num_new is not None
    if num_new > MAX_SECONDS * rate:
        field_name = "max_tokens" if duration is None else "duration"
        raise ValueError(f"{field_name} must be at most {MAX_SECONDS} s with {EXTEND_STRIDE}")
    # The start column and the last steps of the delayed streams take positions too.
    length = min(int(WINDOW_SECONDS * rate), max_model_len - 1 - spec.layout.num_flush_steps)
    num_stride = frames_in(spec, stride, EXTEND_STRIDE)
    if num_stride >= length:
        raise ValueError(
            f"{EXTEND_STRIDE} must be shorter than a window, {float(length / rate):g} s, "
            f"not {stride!r}"
        )
    if params.guidance_interval is not None:
        raise ValueError(f"guidance_interval is not supported together with {EXTEND_STRIDE}")
    data = dict(prompt.get("multi_modal_data") or {})
    given = builder.codes_of(data)
    # Checked here and left out: after the first window each one goes on from audio.
    inputs = {"text"} | ({"audio"} if len(given) else set())
    choose_task(spec, inputs, None, name=options.pop("task", None))
    params = params.clone()
    params.min_tokens = 0
    if params.seed is None:
        params.seed = random.SystemRandom().randrange(2**62)
    kept = {key: value for key, value in prompt.items() if key != "multi_modal_data"}
    return LongRequest(
        kept | {"mm_processor_kwargs": options},
        params,
        given,
        plan_windows(len(given), num_new, length, num_stride),
    )


def in_windows(llm: LLM) -> Callable[..., list[RequestOutput]]:
    """`LLM.generate`, in several rounds for prompts whose `mm_processor_kwargs` have
    `extend_stride`: each round makes the next window of all of them."""
    generate: Any = llm.generate
    builder = stream_prompt_builder(llm.renderer)
    spec = multistream_spec(llm.model_config)
    assert builder is not None and spec is not None
    max_model_len = llm.model_config.max_model_len

    @functools.wraps(generate)
    def generate_in_windows(
        prompts: Any,
        sampling_params: Any = None,
        *,
        priority: Any = None,
        mm_processor_kwargs: dict[str, Any] | None = None,
        **options: Any,
    ) -> list[RequestOutput]:
        given = [_with_options(p, mm_processor_kwargs) for p in prompt_to_seq(prompts)]
        if not any(map(_is_long, given)):
            options |= {"priority": priority, "mm_processor_kwargs": mm_processor_kwargs}
            made: list[RequestOutput] = generate(prompts, sampling_params, **options)
            return made
        if sampling_params is None:
            sampling_params = llm.get_default_sampling_params()
        params = _for_each(sampling_params, len(given), "sampling_params")
        priorities = _for_each(priority, len(given), "priority")
        requests = {
            index: long_request(builder, spec, max_model_len, prompt, params[index])
            for index, prompt in enumerate(given)
            if _is_long(prompt)
        }
        for index, request in requests.items():
            request.priority = priorities[index]
            given[index], params[index] = request.window(0, None)
        first_priority = priorities if priority is not None else None
        outputs: list[RequestOutput] = generate(given, params, priority=first_priority, **options)
        for index, request in requests.items():
            request.first = outputs[index]
            for so_far, first in zip(request.completions, outputs[index].outputs, strict=True):
                so_far.take(first)
        number = 1
        while pending := [
            (request, completion)
            for request in requests.values()
            for completion, so_far in enumerate(request.completions)
            if number < len(request.windows) and not so_far.has_failed
        ]:
            asked = [request.window(number, completion) for request, completion in pending]
            found = generate(
                [prompt for prompt, _ in asked],
                [params for _, params in asked],
                priority=None if priority is None else [r.priority for r, _ in pending],
                **options,
            )
            for (request, completion), output in zip(pending, found, strict=True):
                request.completions[completion].take(output.outputs[0])
            number += 1
        for index, request in requests.items():
            if len(request.windows) > 1:
                outputs[index] = request.output(spec)
        return outputs

    return generate_in_windows


def _with_options(prompt: Any, options: dict[str, Any] | None) -> Any:
    """A prompt with the options that hold for all prompts of a call, if there are any."""
    if options is None:
        return prompt
    if not isinstance(prompt, Mapping):
        prompt = {"prompt" if isinstance(prompt, str) else "prompt_token_ids": prompt}
    return {**prompt, "mm_processor_kwargs": options}


def _is_long(prompt: Any) -> bool:
    options = prompt.get("mm_processor_kwargs") if isinstance(prompt, Mapping) else None
    return isinstance(options, Mapping) and options.get(EXTEND_STRIDE) is not None


def _for_each(value: Any, count: int, name: str) -> list[Any]:
    """One value per prompt, as upstream takes them: a sequence of them or one for all."""
    if not isinstance(value, Sequence):
        return [value] * count
    if len(value) != count:
        raise ValueError(f"{name} must be one, or as many as there are prompts, not {len(value)}")
    return list(value)
