# SPDX-License-Identifier: Apache-2.0
"""Admission: what a request must be before a multi-stream model takes it.

Called by the front end for every request, so that nothing behind it meets bad input.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from vllm.unison.frontend.errors import reports_invalid_request
from vllm.unison.messages.conditioning import (
    AudioInput,
    EncoderInput,
    LaneConditioning,
    PrefixInput,
)
from vllm.unison.messages.sampling_fields import (
    REPEAT_FIELDS,
    STREAM_FIELDS,
    per_stream,
    verify_range,
)
from vllm.unison.messages.streams import StreamInputs
from vllm.unison.model.phases import StateKind, start_of_generation
from vllm.unison.model.spec import SpeechSpec, multistream_spec
from vllm.unison.upstream import asks_for_watermarks

if TYPE_CHECKING:
    from vllm.config import ModelConfig
    from vllm.sampling_params import SamplingParams

_UNSUPPORTED_AT = {
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "min_p": 0.0,
    "logprobs": None,
    "prompt_logprobs": None,
    "prompt_logprob_token_ids": None,
    "logprob_token_ids": None,
    "stop_token_ids": None,
    "structured_outputs": None,
    "logit_bias": None,
    "allowed_token_ids": None,
    "bad_words": None,
    "thinking_token_budget": None,
    "repetition_detection": None,
    "trace_decode_token_ids": None,
}
"""SamplingParams fields that multi-stream models do not honour, and their neutral values."""


@reports_invalid_request
def refuse_unsupported_sampling(params: SamplingParams, model_config: ModelConfig) -> None:
    """Refuse sampling parameters that the model cannot honour; nothing is ignored in silence.

    Raises:
        ValueError: naming the field.
    """
    spec = multistream_spec(model_config)
    if spec is None:
        for name in (*STREAM_FIELDS, *REPEAT_FIELDS):
            if getattr(params, name) is not None:
                raise ValueError(f"{name} is for multi-stream models; this model has one stream")
        return
    for name, neutral in _UNSUPPORTED_AT.items():
        value = getattr(params, name)
        if value != neutral and value not in ([], {}):
            raise ValueError(
                f"{name} is not supported for multi-stream models; it must be {neutral!r}, "
                f"not {value!r}"
            )
    if asks_for_watermarks(params):
        raise ValueError("watermarking is not supported for multi-stream models")
    if params.stop and spec.layout.text_can_follow_audio:
        raise ValueError(
            "stop is not supported for models in which text can follow audio: a stop string would "
            "drop audio that was already made"
        )
    for name in ("temperature", "top_k", "top_p"):
        per_stream(params, name, spec.layout.num_streams)
    verify_range("top_k", params.top_k)
    if params.max_tokens is not None:
        verify_range("max_tokens", params.max_tokens)
    if params.seed is not None and not -(2**63) <= params.seed < 2**63 - params.n:
        raise ValueError(f"seed must be in [-2**63, 2**63 - n), not {params.seed}")


@reports_invalid_request
def admit_streams(
    params: SamplingParams | None, engine_input: Mapping[str, Any], model_config: ModelConfig
) -> StreamInputs | None:
    """Complete a request for a multi-stream model.

    Fills in what generation needs to be a function of the request alone (a seed) and takes the
    auxiliary streams of its prompt, as the prompt's builder left them.

    Args:
        params: the request's own copy of its sampling parameters; seed and max_tokens are set.
        engine_input: the rendered prompt.
        model_config: the model's configuration.

    Returns:
        The request's streams, or None for a single-stream model.

    Raises:
        ValueError: if the prompt leaves no room to generate, or not for as much as is asked for
            where a request's length is its own.
    """
    spec = multistream_spec(model_config)
    if spec is None:
        return None
    if params is None:
        raise ValueError("pooling_params are not supported for multi-stream models")
    prompt = engine_input["prompt_token_ids"]
    auxiliary_ids = engine_input.get("auxiliary_token_ids")
    if auxiliary_ids is None:
        raise ValueError("the prompt of a multi-stream model must come from its renderer")
    start_phase = spec.start_phase(engine_input.get("task", ""))
    _check_context(spec, prompt, model_config.max_model_len, start_phase)
    if spec.frames_per_second is not None:
        _fit_length(spec, params, engine_input, model_config.max_model_len)
    if params.seed is None:
        params.seed = random.SystemRandom().randrange(2**62)
    state, segment_start = start_of_generation(spec.layout, prompt, start_phase)
    return StreamInputs(
        auxiliary_ids,
        spec.layout.text_slice,
        spec.layout.num_flush_steps,
        state,
        segment_start,
        encoder_input_of(engine_input),
        start_phase,
    )


def encoder_input_of(engine_input: Mapping[str, Any]) -> LaneConditioning | None:
    """What the conditional lane of a request is conditioned on besides its tokens, if anything."""
    if (heard := engine_input.get("audio_features")) is not None:
        return AudioInput(*heard)
    ids, chroma = engine_input.get("encoder_token_ids"), engine_input.get("chroma")
    if ids is None:
        return None
    return EncoderInput(list(ids)) if chroma is None else PrefixInput(chroma, list(ids), len(ids))


def _fit_length(
    spec: SpeechSpec, params: SamplingParams, engine_input: Mapping[str, Any], max_model_len: int
) -> None:
    """Refuse more frames than there are positions for, and lower a default to what there are."""
    assert params.max_tokens is not None and spec.frames_per_second is not None
    num_prompt, flush = len(engine_input["prompt_token_ids"]), spec.layout.num_flush_steps
    room = max_model_len - num_prompt - flush
    if params.max_tokens <= room:
        return
    if params.max_tokens_is_default:
        params.max_tokens = room
        return
    seconds = float(room / spec.frames_per_second)
    duration = engine_input.get("duration")
    asked = (
        f"max_tokens must be at most {room} frames ({seconds:g} s), not {params.max_tokens}"
        if duration is None
        else f"duration must be at most {seconds:g} s ({room} frames), not {duration:g}"
    )
    raise ValueError(
        f"{asked}: max_model_len = {max_model_len} has to hold the prompt ({num_prompt}) and the "
        f"last steps of the delayed streams ({flush}) too"
    )


def _check_context(
    spec: SpeechSpec, prompt: list[int], max_model_len: int, start_phase: int | None
) -> None:
    room = max_model_len - spec.layout.num_flush_steps - len(prompt)
    if room >= 1:
        return
    state, _ = start_of_generation(spec.layout, prompt, start_phase)
    flush = (
        f" and {spec.layout.num_flush_steps} steps for the delayed streams"
        if spec.table.kind[state] == StateKind.AUDIO or spec.layout.num_flush_steps
        else ""
    )
    raise ValueError(
        f"prompt has {len(prompt)} tokens; with at least one generated token{flush} it must fit "
        f"max_model_len = {max_model_len}"
    )
