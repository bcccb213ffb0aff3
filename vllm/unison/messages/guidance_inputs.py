# SPDX-License-Identifier: Apache-2.0
"""What a request says about guidance, from the sampling parameters to the scheduler.

merged logits = sum over lanes of weight * logits, weights summing to 1. Plain classifier-free
guidance with scale s (arXiv 2207.12598, in the form of arXiv 2306.05284) has the weights s for the
conditional lane and 1 - s for one guidance lane.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from vllm.unison.messages.conditioning import LaneConditioning
from vllm.unison.messages.sampling_fields import verify_range

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams

WEIGHT_TOLERANCE = 1e-6
"""How far the weights' sum may be from 1."""

GUIDANCE_FIELDS = (
    "guidance_scale",
    "negative_prompt",
    "negative_prompt_token_ids",
    "guidance_interval",
    "guidance_lanes",
)
_LANE_KEYS = {"weight", "prompt", "prompt_token_ids"}


class LaneInputs(msgspec.Struct, array_like=True, gc=False):
    """One guidance lane.

    Attributes:
        weight: of its logits in the merge.
        prompt_token_ids: ids of stream 0 of its prompt, or None for pads as many as the conditional
            lane has steps before guidance starts.
        auxiliary_ids: [num_prompt_tokens, num_streams - 1] int32 ids of the other streams, or None
            for pads (or a single-stream model).
        encoder_input: what the lane is conditioned on besides its tokens, if anything.
    """

    weight: float
    prompt_token_ids: list[int] | None
    auxiliary_ids: np.ndarray | None = None
    encoder_input: LaneConditioning | None = None


class GuidanceInputs(msgspec.Struct, array_like=True, gc=False):
    """Front end to scheduler: the guidance of one request.

    Attributes:
        weight: of the conditional lane.
        lanes: the guidance lanes, at least one.
        first, last: guided frames (steps, for a single-stream model) of a stretch, both included;
            last None means to the end.
        audio_only: whether only audio phases are guided.
        pad_token_ids: per stream the id of a pad (single-stream: empty).
        null_ending: ids of stream 0 in the last steps of a prompt of pads, in their place.
    """

    weight: float
    lanes: list[LaneInputs]
    first: int = 0
    last: int | None = None
    audio_only: bool = False
    pad_token_ids: list[int] = []
    null_ending: list[int] = []


def _is_finite(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def verify_guidance_fields(params: SamplingParams) -> None:
    """Refuse guidance values that no model accepts. Raises ValueError naming field and range."""
    scale = params.guidance_scale
    if scale is not None:
        verify_range("guidance_scale", scale)
    if params.negative_prompt is not None and params.negative_prompt_token_ids is not None:
        raise ValueError("negative_prompt and negative_prompt_token_ids must not both be given")
    _verify_prompt("negative_prompt", params.negative_prompt, str)
    _verify_prompt("negative_prompt_token_ids", params.negative_prompt_token_ids, (list, tuple))
    interval: Any = params.guidance_interval
    if interval is not None:
        is_pair = isinstance(interval, (list, tuple)) and len(interval) == 2
        whole = is_pair and all(isinstance(v, int) and not isinstance(v, bool) for v in interval)
        if not whole or not 0 <= interval[0] <= interval[1]:
            raise ValueError(
                "guidance_interval must be (first_frame, last_frame) with 0 <= first_frame <= "
                f"last_frame, not {interval!r}"
            )
    if params.guidance_lanes is not None:
        _verify_lanes(params)
    elif scale is None:
        for name in ("negative_prompt", "negative_prompt_token_ids", "guidance_interval"):
            if getattr(params, name) is not None:
                raise ValueError(f"{name} needs guidance_scale or guidance_lanes")


def _verify_prompt(name: str, value: Any, kind: type | tuple[type, ...]) -> None:
    if value is not None and not isinstance(value, kind):
        what = "text" if kind is str else "a list of token ids"
        raise ValueError(f"{name} must be {what}, not {value!r}")


def _verify_lanes(params: SamplingParams) -> None:
    lanes: Any = params.guidance_lanes
    if not isinstance(lanes, (list, tuple)):
        raise ValueError(f"guidance_lanes must be a list of lanes, not {lanes!r}")
    for name in ("guidance_scale", "negative_prompt", "negative_prompt_token_ids"):
        if getattr(params, name) is not None:
            raise ValueError(f"{name} and guidance_lanes must not both be given")
    if len(lanes) < 2:
        raise ValueError(
            f"guidance_lanes must list at least 2 lanes, the conditional first, not {len(lanes)}"
        )
    for index, lane in enumerate(lanes):
        where = f"guidance_lanes[{index}]"
        if not isinstance(lane, dict) or not set(lane) <= _LANE_KEYS:
            raise ValueError(f"{where} must be an object with keys of {sorted(_LANE_KEYS)}")
        if not _is_finite(lane.get("weight")):
            raise ValueError(f"{where}.weight must be a finite number, not {lane.get('weight')!r}")
        if "prompt" in lane and "prompt_token_ids" in lane:
            raise ValueError(f"{where} must not have both prompt and prompt_token_ids")
        _verify_prompt(f"{where}.prompt", lane.get("prompt"), str)
        _verify_prompt(f"{where}.prompt_token_ids", lane.get("prompt_token_ids"), (list, tuple))
        if index == 0 and set(lane) != {"weight"}:
            raise ValueError(f"{where} is the conditional lane: it must have a weight only")
    total = sum(lane["weight"] for lane in lanes)
    if abs(total - 1) > WEIGHT_TOLERANCE:
        raise ValueError(f"guidance_lanes weights must sum to 1, not {total}")


def is_guided(params: SamplingParams) -> bool:
    """Whether a request has guidance lanes; a scale of exactly 1 needs none."""
    if params.guidance_lanes is not None:
        return True
    return params.guidance_scale is not None and params.guidance_scale != 1.0
