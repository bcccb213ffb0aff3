# SPDX-License-Identifier: Apache-2.0
"""The sampling fields that a multi-stream request may set per stream.

`stream_temperature`, `stream_top_k` and `stream_top_p` of SamplingParams are a number for all
streams or a list with one number per stream; they hold in audio phases. Where one is None, the
ordinary `temperature`, `top_k` or `top_p` holds in audio phases too, as it does in text phases.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams

STREAM_FIELDS = ("stream_temperature", "stream_top_k", "stream_top_p")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


_ACCEPTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "stream_temperature": (
        lambda v: _is_number(v) and math.isfinite(v) and v >= 0,
        "a finite number >= 0",
    ),
    "stream_top_k": (
        lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= -1,
        "an integer >= 1, or 0 or -1 for all candidates",
    ),
    "stream_top_p": (lambda v: _is_number(v) and 0 < v <= 1, "a number in (0, 1]"),
}


def verify_stream_fields(params: SamplingParams) -> None:
    """Refuse values that no model accepts. Raises ValueError naming the field and the range."""
    for name, (accepts, words) in _ACCEPTED.items():
        value = getattr(params, name)
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        if not values:
            raise ValueError(f"{name} must be {words}, or a list of one per stream, not []")
        for index, item in enumerate(values):
            if not accepts(item):
                where = f"{name}[{index}]" if isinstance(value, list) else name
                raise ValueError(f"{where} must be {words}, not {item!r}")


def per_stream(params: SamplingParams, name: str, num_streams: int) -> list[Any]:
    """One value per stream of `name` ("temperature", "top_k" or "top_p") for audio phases.

    Raises:
        ValueError: if a list has not one entry per stream.
    """
    value = getattr(params, f"stream_{name}")
    if value is None:
        value = getattr(params, name)
    if not isinstance(value, list):
        return [value] * num_streams
    if len(value) != num_streams:
        raise ValueError(
            f"stream_{name} must be a number or a list of {num_streams}, one per stream, "
            f"not {len(value)} values"
        )
    return list(value)
