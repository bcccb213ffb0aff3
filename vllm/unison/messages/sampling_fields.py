# SPDX-License-Identifier: Apache-2.0
"""The sampling fields that a multi-stream request may set per stream.

`stream_temperature`, `stream_top_k` and `stream_top_p` of SamplingParams are a number for all
streams or a list with one number per stream; they hold in audio phases. Where one is None, the
ordinary `temperature`, `top_k` or `top_p` holds in audio phases too, as it does in text phases.

RANGES says what the engine accepts of numbers; the server's schema and its documentation are
derived from it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.sampling_params import SamplingParams

STREAM_FIELDS = ("stream_temperature", "stream_top_k", "stream_top_p")

REPEAT_FIELDS = ("ras_win_len", "ras_win_max_num_repeat")
"""Repetition-aware sampling (arXiv 2406.05370), under the names that published configurations have:
a code that its stream has emitted `ras_win_max_num_repeat` times in the last `ras_win_len` steps is
drawn again, without temperature and filters. No window: never."""

DEFAULT_MAX_REPEATS = 2
"""Of a request that gives a window alone; as in the published configurations that have one."""

_INT32_MAX = 2**31 - 1


class _Unset(int):
    """A default that can be told from the same number given by a caller."""

    def __copy__(self) -> _Unset:
        return self

    def __deepcopy__(self, memo: object) -> _Unset:
        return self

    def __reduce__(self) -> str:
        return "UNSET_MAX_TOKENS"


UNSET_MAX_TOKENS = _Unset(16)
"""The default of SamplingParams.max_tokens: upstream's 16, for single-stream models nothing else.

Compared by identity, which copies and pickles keep; msgspec sends no field that is its default."""


@dataclass(frozen=True)
class Range:
    """The numbers that a sampling field may be.

    Attributes:
        low, high: the bounds, both included unless the lower one is open.
        is_integer: whether it is a whole number.
        low_is_open: whether the number must be above `low`.
    """

    low: float
    high: float
    is_integer: bool = False
    low_is_open: bool = False

    def holds(self, value: Any) -> bool:
        """Whether a value is a number of this range."""
        kinds = int if self.is_integer else (int, float)
        if not isinstance(value, kinds) or isinstance(value, bool) or value != value:
            return False
        return (self.low < value if self.low_is_open else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        what = "an integer" if self.is_integer else "a number"
        return f"{what} in {'(' if self.low_is_open else '['}{self.low}, {self.high}]"


RANGES: Mapping[str, Range] = {
    "temperature": Range(0, 2),
    "top_k": Range(-1, _INT32_MAX, is_integer=True),
    "top_p": Range(0, 1, low_is_open=True),
    # Each of a request's n completions takes the next seed.
    "seed": Range(-(2**63), 2**63 - 2, is_integer=True),
    "max_tokens": Range(1, _INT32_MAX, is_integer=True),
    "guidance_scale": Range(0, 100),
    "ras_win_len": Range(0, 1024, is_integer=True),
    "ras_win_max_num_repeat": Range(1, 1024, is_integer=True),
}
"""By SamplingParams field; temperature and top_p are upstream's ranges."""


def verify_range(name: str, value: Any) -> None:
    """Refuse a number out of its range. Raises ValueError naming the field and the range."""
    if not RANGES[name].holds(value):
        raise ValueError(f"{name} must be {RANGES[name]}, not {value!r}")


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
    for name in REPEAT_FIELDS:
        if getattr(params, name) is not None:
            verify_range(name, getattr(params, name))
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
