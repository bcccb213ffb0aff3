# SPDX-License-Identifier: Apache-2.0
"""The per-stream fields of SamplingParams."""

import math
from typing import Any

import pytest

from vllm.sampling_params import SamplingParams
from vllm.unison.messages.sampling_fields import STREAM_FIELDS, per_stream, verify_stream_fields

BAD: dict[str, list[Any]] = {
    "stream_temperature": [-0.1, math.nan, math.inf, -math.inf, "1", True],
    "stream_top_k": [-2, 1.0, math.nan, "1", True],
    "stream_top_p": [0, 0.0, -0.1, 1.01, math.nan, math.inf, "1", True],
}
GOOD: dict[str, list[Any]] = {
    "stream_temperature": [0, 0.0, 1, 2.5],
    "stream_top_k": [-1, 0, 1, 5000],
    "stream_top_p": [1, 1.0, 0.001],
}
WORDS = {
    "stream_temperature": "a finite number >= 0",
    "stream_top_k": "an integer >= 1, or 0 or -1",
    "stream_top_p": r"a number in \(0, 1\]",
}


def request(**fields: Any) -> SamplingParams:
    return SamplingParams(**fields)


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in BAD.items() for v in values])
def test_bad_values_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be {WORDS[name]}.*, not {value!r}"):
        request(**{name: value})
    with pytest.raises(ValueError, match=rf"^{name}\[1\] must be {WORDS[name]}.*, not {value!r}"):
        request(**{name: [GOOD[name][0], value]})


@pytest.mark.parametrize("name", STREAM_FIELDS)
def test_an_empty_list_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be {WORDS[name]}.*, not \[\]"):
        request(**{name: []})


@pytest.mark.parametrize("name", STREAM_FIELDS)
def test_good_values_are_taken(name: str) -> None:
    for value in (*GOOD[name], GOOD[name]):
        params = request(**{name: value})
        assert getattr(params, name) == value
    assert getattr(SamplingParams(), name) is None
    verify_stream_fields(SamplingParams())


@pytest.mark.parametrize("field", ["temperature", "top_k", "top_p"])
def test_one_value_per_stream(field: str) -> None:
    ordinary: dict[str, Any] = {"temperature": 0.5, "top_k": 7, "top_p": 0.25}
    name, other = f"stream_{field}", GOOD[f"stream_{field}"][-1]
    assert per_stream(request(**ordinary), field, 3) == [ordinary[field]] * 3
    assert per_stream(request(**ordinary, **{name: other}), field, 3) == [other] * 3
    values = GOOD[name][:3]
    assert per_stream(request(**ordinary, **{name: values}), field, 3) == values
    with pytest.raises(ValueError, match=f"^{name} must be .* a list of 4, one per stream, not 3"):
        per_stream(request(**{name: values}), field, 4)
    with pytest.raises(ValueError, match=f"^{name} must be .* a list of 2, one per stream, not 3"):
        per_stream(request(**{name: values}), field, 2)


def test_the_list_of_a_request_is_not_shared() -> None:
    values = [0.5, 1.0]
    params = SamplingParams(stream_temperature=values)
    per_stream(params, "temperature", 2)[0] = 9.0
    assert params.stream_temperature == [0.5, 1.0]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ras_win_len": -1}, r"ras_win_len must be an integer in \[0, 1024\], not -1"),
        ({"ras_win_len": 1025}, r"ras_win_len must be an integer in \[0, 1024\], not 1025"),
        ({"ras_win_len": 7.0}, r"ras_win_len must be an integer"),
        ({"ras_win_len": True}, r"ras_win_len must be an integer"),
        (
            {"ras_win_len": 7, "ras_win_max_num_repeat": 0},
            r"ras_win_max_num_repeat must be an integer in \[1, 1024\], not 0",
        ),
    ],
)
def test_windows_of_repetitions_are_checked(fields: dict[str, Any], message: str) -> None:
    SamplingParams(ras_win_len=0, ras_win_max_num_repeat=1)
    with pytest.raises(ValueError, match=message):
        SamplingParams(**fields)
