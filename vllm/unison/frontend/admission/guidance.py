# SPDX-License-Identifier: Apache-2.0
"""Admission of guidance: a request's guidance, complete and admissible, or an error."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from vllm.unison.frontend.admission.streams import encoder_input_of
from vllm.unison.frontend.errors import InvalidRequestError, reports_invalid_request
from vllm.unison.frontend.prompt_ids import checked_encoder_ids
from vllm.unison.frontend.prompts import stream_prompt_builder
from vllm.unison.messages.conditioning import EncoderInput, LaneConditioning, PrefixInput
from vllm.unison.messages.guidance_inputs import GuidanceInputs, LaneInputs, is_guided
from vllm.unison.model.spec import PADS, SpeechSpec, multistream_spec

if TYPE_CHECKING:
    import numpy as np

    from vllm.config import VllmConfig
    from vllm.sampling_params import SamplingParams


@reports_invalid_request
def admit_guidance(
    params: SamplingParams | None,
    engine_input: Mapping[str, Any],
    vllm_config: VllmConfig,
    renderer: Any,
) -> GuidanceInputs | None:
    """The guidance of a request.

    Args:
        params: its sampling parameters, max_tokens set.
        engine_input: its rendered prompt.
        vllm_config: the engine's configuration.
        renderer: the front end's renderer, which makes negative prompts as it makes prompts.

    Returns:
        None for a request without guidance lanes.

    Raises:
        ValueError: naming the field and what is accepted.
    """
    if params is None or not is_guided(params):
        return None
    _refuse_combinations(params, vllm_config)
    builder = stream_prompt_builder(renderer)
    build_prompt = None if builder is None else builder.build
    spec = multistream_spec(vllm_config.model_config)
    if params.guidance_lanes is not None:
        weights = [float(lane["weight"]) for lane in params.guidance_lanes]
        lane_prompts = [dict(lane) for lane in params.guidance_lanes[1:]]
    else:
        scale = float(params.guidance_scale or 0.0)
        weights = [scale, 1.0 - scale]
        lane_prompts = [
            {} if params.negative_prompt is None else {"prompt": params.negative_prompt}
        ]
        if params.negative_prompt_token_ids is not None:
            lane_prompts = [{"prompt_token_ids": params.negative_prompt_token_ids}]
    lanes = []
    names = _names(params, len(lane_prompts))
    for lane, weight, where in zip(lane_prompts, weights[1:], names, strict=True):
        encoder_input: LaneConditioning | None = None
        if spec is not None and spec.text_encoder is not None:
            encoder_input = _encoder_input(where, lane, spec, renderer.tokenizer)
            prompt = _same_prompt(engine_input)
            conditional = encoder_input_of(engine_input)
            if isinstance(conditional, PrefixInput):
                encoder_input = _prefix_of_lane(encoder_input, conditional, spec)
                prompt = _moved_prompt(prompt, conditional, encoder_input)
        else:
            prompt = _lane_prompt(where, lane, spec, renderer.tokenizer, build_prompt, vllm_config)
        lanes.append(LaneInputs(weight, *prompt, encoder_input))
    interval = params.guidance_interval
    inputs = GuidanceInputs(
        weight=weights[0],
        lanes=lanes,
        first=interval[0] if interval else 0,
        last=interval[1] if interval else None,
        audio_only=spec is not None and spec.guides_audio_only,
        pad_token_ids=[] if spec is None else list(spec.layout.pad_token_ids),
        null_ending=[] if spec is None else list(spec.null_ending),
    )
    _check_sizes(inputs, names, params, engine_input, spec, vllm_config)
    return inputs


def _names(params: SamplingParams, num_lanes: int) -> list[str]:
    """What the request calls the prompt of each guidance lane."""
    if params.guidance_lanes is not None:
        return [f"guidance_lanes[{number}]" for number in range(1, num_lanes + 1)]
    is_ids = params.negative_prompt_token_ids is not None
    return ["negative_prompt_token_ids" if is_ids else "negative_prompt"]


def _refuse_combinations(params: SamplingParams, vllm_config: VllmConfig) -> None:
    parallel = vllm_config.parallel_config
    refused = {
        "kv_transfer_config": vllm_config.kv_transfer_config is not None,
        "speculative_config": vllm_config.speculative_config is not None,
        "structured_outputs": params.structured_outputs is not None,
        "prompt_logprobs": params.prompt_logprobs is not None,
        "pipeline_parallel_size > 1": parallel.pipeline_parallel_size > 1,
        # Each rank samples some rows of the batch, and the lanes of a group may be on two.
        "enable_batch_sharded_sampling": parallel.enable_batch_sharded_sampling,
    }
    for name, is_set in refused.items():
        if is_set:
            raise ValueError(f"guidance is not supported together with {name}")


Prompt = tuple[list[int] | None, "np.ndarray | None"]
"""Ids of stream 0 and of the others in a lane's prompt; None, None for pads."""


def _lane_prompt(
    where: str,
    lane: Mapping[str, Any],
    spec: SpeechSpec | None,
    tokenizer: Any,
    build_prompt: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None,
    vllm_config: VllmConfig,
) -> Prompt:
    """The prompt of a lane that has one of its own, or a null prompt."""
    if (text := lane.get("prompt")) is not None:
        if tokenizer is None:
            raise ValueError(f"{where} as text needs a tokenizer; give token ids")
        prompt = {"prompt": text, "prompt_token_ids": tokenizer.encode(text)}
        if not prompt["prompt_token_ids"]:
            raise ValueError(
                f"{where} must hold text that the model's tokenizer knows, not {text!r}"
            )
    elif lane.get("prompt_token_ids") is not None:
        prompt = {"prompt_token_ids": list(lane["prompt_token_ids"])}
    elif spec is None or spec.null_prompt is None:
        raise ValueError(
            f"{where} must be given: the model's configuration has no null prompt for guidance"
        )
    elif spec.null_prompt == PADS:
        return None, None
    else:
        prompt = {"prompt_token_ids": list(spec.null_prompt)}
    # Here, so that the error names the lane's field and not the request's own prompt.
    _check_tokens(where, prompt["prompt_token_ids"], vllm_config)
    if build_prompt is not None:
        try:
            prompt = dict(build_prompt(prompt))
        except InvalidRequestError as error:
            raise error.renamed({"prompt": where, "prompt_token_ids": where}) from error
    token_ids = prompt["prompt_token_ids"]
    if not token_ids:
        raise ValueError(f"{where} must have at least one token")
    auxiliary = prompt.get("auxiliary_token_ids")
    # What is delayed past the lane's prompt gives way to what the request emits.
    return token_ids, None if auxiliary is None else auxiliary[: len(token_ids)]


def _same_prompt(engine_input: Mapping[str, Any]) -> Prompt:
    """The conditional lane's prompt, for a lane that differs in what it attends to."""
    token_ids = list(engine_input["prompt_token_ids"])
    return token_ids, engine_input["auxiliary_token_ids"][: len(token_ids)]


def _encoder_input(
    where: str, lane: Mapping[str, Any], spec: SpeechSpec, tokenizer: Any
) -> EncoderInput | None:
    """What a lane attends to; None for a lane whose prompt is not given."""
    assert spec.text_encoder is not None
    text, ids = lane.get("prompt"), lane.get("prompt_token_ids")
    if text is None and ids is None:
        return None
    if text is not None:
        if tokenizer is None:
            raise ValueError(f"{where} as text needs a tokenizer; give token ids")
        ids = tokenizer.encode(text)
    assert ids is not None
    return EncoderInput(checked_encoder_ids(spec.text_encoder, text, ids, where))


def _prefix_of_lane(
    text: EncoderInput | None, conditional: PrefixInput, spec: SpeechSpec
) -> PrefixInput:
    """The prefix of a lane that has a text or none, and no melody."""
    assert spec.melody is not None
    if text is None:
        return PrefixInput(spec.melody.null_chroma, [], conditional.num_text)
    return PrefixInput(spec.melody.null_chroma, text.token_ids, text.num_states)


def _moved_prompt(prompt: Prompt, conditional: PrefixInput, of_lane: PrefixInput) -> Prompt:
    """A prompt with as many placeholders as a lane's prefix needs."""
    token_ids, auxiliary = prompt
    assert token_ids is not None and auxiliary is not None
    # All placeholders are alike.
    kept = [0] * of_lane.num_positions + list(range(conditional.num_positions, len(token_ids)))
    return [token_ids[index] for index in kept], auxiliary[kept]


def _check_tokens(where: str, token_ids: list[int], vllm_config: VllmConfig) -> None:
    vocabulary = vllm_config.model_config.get_vocab_size()
    for token in token_ids:
        if not isinstance(token, int) or not 0 <= token < vocabulary:
            raise ValueError(f"{where}: token ids must be in [0, {vocabulary}), not {token!r}")


def _check_sizes(
    inputs: GuidanceInputs,
    names: list[str],
    params: SamplingParams,
    engine_input: Mapping[str, Any],
    spec: SpeechSpec | None,
    vllm_config: VllmConfig,
) -> None:
    num_prompt_tokens = len(engine_input["prompt_token_ids"])
    rows = len(inputs.lanes) + 1
    # A group whose lanes never fit into one step would wait for ever.
    for name in (
        "max_num_seqs",
        "max_num_active_seqs",
        "max_num_batched_tokens",
        "max_num_scheduled_tokens",
    ):
        limit = getattr(vllm_config.scheduler_config, name)
        if limit is not None and rows > limit:
            raise ValueError(f"guidance needs {rows} lanes, but {name} = {limit}")
    context = vllm_config.model_config.max_model_len
    flush = 0 if spec is None else spec.layout.num_flush_steps
    blocks = vllm_config.cache_config.num_gpu_blocks
    size = vllm_config.cache_config.block_size
    # Pads are as many as the conditional lane's steps before guidance.
    prompts = [num_prompt_tokens] + [
        num_prompt_tokens if lane.prompt_token_ids is None else len(lane.prompt_token_ids)
        for lane in inputs.lanes
    ]

    # What each lane attends to has blocks of its own.
    encoder_inputs = [
        encoder_input_of(engine_input),
        *(lane.encoder_input for lane in inputs.lanes),
    ]
    num_states = [encoded.num_states for encoded in encoder_inputs if encoded is not None]

    def num_blocks(generated: int) -> int:
        own = sum(-(-(prompt + generated) // size) for prompt in prompts)
        return own + sum(-(-states // size) for states in num_states)

    assert params.max_tokens is not None
    if params.max_tokens_is_default:
        # The request did not ask for the number, so it gets what all its lanes have room for.
        room = context - max(prompts)
        if blocks and size:
            room = bisect_right(range(room + 1), blocks - 1, key=num_blocks) - 1
        params.max_tokens = max(min(params.max_tokens, room - flush), params.min_tokens, 1)
    generated = min(params.max_tokens + flush, context - num_prompt_tokens)
    for prompt, where in zip(prompts[1:], names, strict=True):
        if prompt + generated > context:
            raise ValueError(
                f"{where} has {prompt} tokens; with up to {generated} generated "
                f"ones it must fit max_model_len = {context}"
            )
    # One block is upstream's null block.
    if blocks and size and (needed := num_blocks(generated)) > blocks - 1:
        raise ValueError(
            f"the request's {rows} lanes may need {needed} KV cache blocks of {size} tokens, "
            f"but the cache has {blocks - 1}; lower max_tokens or enlarge the KV cache"
        )
