# SPDX-License-Identifier: Apache-2.0
"""What guidance values a request may have."""

import math
from typing import Any

import pytest

from vllm.sampling_params import SamplingParams
from vllm.unison.messages.guidance_inputs import GUIDANCE_FIELDS, is_guided

PAIR = [{"weight": 3.0}, {"weight": -2.0, "prompt_token_ids": [1]}]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        *(
            ({"guidance_scale": value}, r"guidance_scale must be a number in .0, 100.")
            for value in (math.nan, math.inf, -math.inf, -0.5, "3", True)
        ),
        (
            {"guidance_scale": 2, "negative_prompt": "a", "negative_prompt_token_ids": [1]},
            "negative_prompt and negative_prompt_token_ids must not both",
        ),
        *(
            ({"guidance_scale": 2.0, "guidance_interval": value}, "guidance_interval must be")
            for value in ((3, 2), (-1, 2), (0,), (0, 1, 2), (0.5, 2), (False, 2), ())
        ),
        *(
            ({name: value}, f"{name} needs guidance_scale or guidance_lanes")
            for name, value in (
                ("negative_prompt", "a"),
                ("negative_prompt_token_ids", [1]),
                ("guidance_interval", (0, 1)),
            )
        ),
        *(
            ({"guidance_lanes": PAIR, name: value}, f"{name} and guidance_lanes must not both")
            for name, value in (
                ("guidance_scale", 3.0),
                ("negative_prompt", "a"),
                ("negative_prompt_token_ids", [1]),
            )
        ),
        (
            {"guidance_scale": 3.0, "negative_prompt": [1]},
            r"negative_prompt must be text, not \[1\]",
        ),
        (
            {"guidance_scale": 3.0, "negative_prompt_token_ids": "a"},
            "negative_prompt_token_ids must be a list of token ids, not 'a'",
        ),
        ({"guidance_lanes": []}, "at least 2 lanes, the conditional first, not 0"),
        ({"guidance_lanes": [{"weight": 1.0}]}, "at least 2 lanes, the conditional first, not 1"),
        ({"guidance_lanes": [{"weight": 1.0}, 5]}, r"guidance_lanes\[1\] must be an object"),
        (
            {"guidance_lanes": [{"weight": 1.0}, {"weight": 0.0, "scale": 1}]},
            r"guidance_lanes\[1\] must be an object with keys of",
        ),
        (
            {"guidance_lanes": [{"weight": 1.0}, {}]},
            r"guidance_lanes\[1\]\.weight must be a finite",
        ),
        (
            {"guidance_lanes": [{"weight": math.nan}, {"weight": 0.0}]},
            r"guidance_lanes\[0\]\.weight must be a finite number",
        ),
        (
            {"guidance_lanes": [{"weight": 1.0}, {"weight": 1e-5}]},
            "guidance_lanes weights must sum to 1",
        ),
        (
            {"guidance_lanes": [{"weight": 0.5, "prompt": "a"}, {"weight": 0.5}]},
            r"guidance_lanes\[0\] is the conditional lane",
        ),
        (
            {
                "guidance_lanes": [
                    {"weight": 0.5},
                    {"weight": 0.5, "prompt": "a", "prompt_token_ids": [1]},
                ]
            },
            r"guidance_lanes\[1\] must not have both prompt and prompt_token_ids",
        ),
    ],
)
def test_bad_values_are_refused_by_name(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParams(**fields)


@pytest.mark.parametrize(
    ("fields", "guided"),
    [
        ({}, False),
        ({"guidance_scale": 1.0}, False),
        ({"guidance_scale": 1}, False),
        ({"guidance_scale": 1.0, "negative_prompt": "a"}, False),
        ({"guidance_scale": 0.0}, True),
        ({"guidance_scale": 7, "guidance_interval": (0, 0)}, True),
        ({"guidance_scale": 1.5, "negative_prompt_token_ids": [1, 2]}, True),
        ({"guidance_lanes": PAIR}, True),
        ({"guidance_lanes": PAIR, "guidance_interval": (2, 9)}, True),
        ({"guidance_lanes": [{"weight": 1.0}, {"weight": 0.1}, {"weight": -0.1}]}, True),
    ],
)
def test_good_values_are_taken(fields: dict[str, Any], guided: bool) -> None:
    params = SamplingParams(**fields)
    assert is_guided(params) is guided
    assert {name: getattr(params, name) for name in GUIDANCE_FIELDS if name in fields} == fields
