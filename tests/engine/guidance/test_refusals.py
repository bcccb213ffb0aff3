# SPDX-License-Identifier: Apache-2.0
"""Contract 8 with guidance: what cannot be honoured is refused with an error naming the field."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine.guidance.cases import PLAIN, Model, speech_prompt
from tests.engine.guidance.checkpoints import CHECKPOINTS
from tests.engine.guidance.conftest import assert_nothing_left
from tests.engine.streams.cases import MAX_MODEL_LEN, Case, assert_equals
from tests.engine.streams.conftest import open_engine
from vllm import LLM, SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import StructuredOutputsParams

NAME = "constant"
REFUSED = (ValueError, VLLMValidationError)
_LANE = {"weight": -2.0}

VALUES: dict[str, tuple[dict[str, Any], str]] = {
    "scale NaN": ({"guidance_scale": float("nan")}, "guidance_scale"),
    "scale infinite": ({"guidance_scale": float("inf")}, "guidance_scale"),
    "scale negative": ({"guidance_scale": -0.5}, "guidance_scale"),
    "scale a word": ({"guidance_scale": "3"}, "guidance_scale"),
    "scale true": ({"guidance_scale": True}, "guidance_scale"),
    "both negative prompts": (
        {"guidance_scale": 3.0, "negative_prompt": "a", "negative_prompt_token_ids": [3]},
        "negative_prompt and negative_prompt_token_ids",
    ),
    "negative prompt alone": ({"negative_prompt": "a"}, "negative_prompt needs guidance_scale"),
    "negative ids alone": (
        {"negative_prompt_token_ids": [3]},
        "negative_prompt_token_ids needs guidance_scale",
    ),
    "interval alone": ({"guidance_interval": (0, 1)}, "guidance_interval needs guidance_scale"),
    "interval backwards": (
        {"guidance_scale": 3.0, "guidance_interval": (5, 4)},
        "guidance_interval must be",
    ),
    "interval negative": (
        {"guidance_scale": 3.0, "guidance_interval": (-1, 4)},
        "guidance_interval must be",
    ),
    "interval of three": (
        {"guidance_scale": 3.0, "guidance_interval": (1, 2, 3)},
        "guidance_interval must be",
    ),
    "interval of fractions": (
        {"guidance_scale": 3.0, "guidance_interval": (0.0, 4.5)},
        "guidance_interval must be",
    ),
    "interval a number": ({"guidance_scale": 3.0, "guidance_interval": 4}, "guidance_interval"),
    "negative prompt a number": (
        {"guidance_scale": 3.0, "negative_prompt": 4},
        "negative_prompt must be text",
    ),
    "negative ids a number": (
        {"guidance_scale": 3.0, "negative_prompt_token_ids": 4},
        "negative_prompt_token_ids must be a list",
    ),
    "lanes a number": ({"guidance_lanes": 3}, "guidance_lanes must be a list"),
    "a lane that is a number": (
        {"guidance_lanes": [{"weight": 3.0}, -2.0]},
        r"guidance_lanes\[1\] must be an object",
    ),
    "a lane's prompt a number": (
        {"guidance_lanes": [{"weight": 3.0}, _LANE | {"prompt": 4}]},
        r"guidance_lanes\[1\]\.prompt must be text",
    ),
    "a lane's ids text": (
        {"guidance_lanes": [{"weight": 3.0}, _LANE | {"prompt_token_ids": "a"}]},
        r"guidance_lanes\[1\]\.prompt_token_ids must be a list",
    ),
    "weights": ({"guidance_lanes": [{"weight": 3.0}, {"weight": -1.9}]}, "guidance_lanes weights"),
    "weight missing": ({"guidance_lanes": [{"weight": 3.0}, {}]}, r"guidance_lanes\[1\]\.weight"),
    "weight NaN": (
        {"guidance_lanes": [{"weight": 3.0}, {"weight": float("nan")}]},
        r"guidance_lanes\[1\]\.weight",
    ),
    "unknown key": (
        {"guidance_lanes": [{"weight": 3.0}, _LANE | {"text": "a"}]},
        r"guidance_lanes\[1\] must be an object with keys",
    ),
    "two prompts of a lane": (
        {"guidance_lanes": [{"weight": 3.0}, _LANE | {"prompt": "a", "prompt_token_ids": [3]}]},
        r"guidance_lanes\[1\] must not have both",
    ),
    "a prompt of the conditional lane": (
        {"guidance_lanes": [{"weight": 3.0, "prompt": "a"}, _LANE]},
        r"guidance_lanes\[0\] is the conditional lane",
    ),
    "one lane": ({"guidance_lanes": [{"weight": 1.0}]}, "guidance_lanes must list at least 2"),
    "no lanes": ({"guidance_lanes": []}, "guidance_lanes must list at least 2"),
    "lanes and a scale": (
        {"guidance_scale": 3.0, "guidance_lanes": [{"weight": 3.0}, _LANE]},
        "guidance_scale and guidance_lanes",
    ),
}


@pytest.mark.parametrize("what", list(VALUES))
def test_values_no_model_accepts_are_refused_when_they_are_set(what: str) -> None:
    options, words = VALUES[what]
    with pytest.raises(REFUSED, match=words):
        SamplingParams(**options)


@pytest.fixture(scope="module")
def llm(model: Callable[[str], Model]) -> Iterator[LLM]:
    """An engine with 4 rows and 18 blocks of 32 tokens."""
    with open_engine(model(NAME).folder, max_num_seqs=4, num_gpu_blocks_override=19) as llm:
        yield llm


def _lanes(*prompts: Any) -> dict[str, Any]:
    lanes: list[dict[str, Any]] = [{"weight": 1.0 + len(prompts)}]
    lanes += [{"weight": -1.0, "prompt_token_ids": prompt} for prompt in prompts]
    return {"guidance_lanes": lanes}


ADMISSION: dict[str, tuple[dict[str, Any], str]] = {
    "negative prompt beyond the context": (
        {"guidance_scale": 3.0, "negative_prompt_token_ids": speech_prompt(MAX_MODEL_LEN + 10)},
        r"negative_prompt_token_ids has 266 tokens.*max_model_len = 256",
    ),
    "negative prompt that leaves no room": (
        {"guidance_scale": 3.0, "negative_prompt_token_ids": speech_prompt(MAX_MODEL_LEN - 20)},
        r"negative_prompt_token_ids has 236 tokens.*max_model_len = 256",
    ),
    "negative text beyond the context": (
        {"guidance_scale": 3.0, "negative_prompt": "a" * 300},
        "max_model_len|maximum (context|model) length",
    ),
    "a lane's prompt beyond the context": (
        _lanes(speech_prompt(MAX_MODEL_LEN)),
        "has 256 tokens.*max_model_len = 256",
    ),
    "more lanes than rows": (_lanes(*[[3, 2]] * 4), "5 lanes, but max_num_seqs = 4"),
    "a cache too small": (
        _lanes(*[speech_prompt(200)] * 3) | {"max_tokens": 40},
        r"4 lanes may need 26 KV cache blocks of 32 tokens, but the cache has 18",
    ),
    "empty negative prompt": (
        {"guidance_scale": 3.0, "negative_prompt_token_ids": []},
        "negative_prompt",
    ),
    "token too large": (
        {"guidance_scale": 3.0, "negative_prompt_token_ids": [528]},
        r"negative_prompt_token_ids: token ids must be in \[0, 528\)",
    ),
    "token below zero": (
        {"guidance_scale": 3.0, "negative_prompt_token_ids": [3, -1]},
        r"negative_prompt_token_ids: token ids must be in \[0, 528\)",
    ),
    "token that is no number": (
        {"guidance_scale": 3.0, "negative_prompt_token_ids": [3, "2"]},
        r"negative_prompt_token_ids: token ids must be in \[0, 528\)",
    ),
    "token of a lane": (_lanes([3, 2], [600]), r"guidance_lanes\[2\]: token ids must be in"),
    "structured outputs": (
        {"guidance_scale": 3.0, "structured_outputs": StructuredOutputsParams(regex="a+")},
        "structured_outputs",
    ),
    "prompt logprobs": ({"guidance_scale": 3.0, "prompt_logprobs": 1}, "prompt_logprobs"),
}


@pytest.mark.parametrize("what", list(ADMISSION))
def test_requests_that_cannot_be_guided_are_refused_at_admission(
    llm: LLM, model: Callable[[str], Model], what: str
) -> None:
    options, words = ADMISSION[what]
    good = Case(text="good", options=PLAIN | {"guidance_scale": 3.0})
    bad = Case(text="bad", options={"max_tokens": 30} | options)
    with pytest.raises(REFUSED, match=words):
        # One bad request among good ones; nothing of the call stays in the engine.
        llm.generate([good.prompt, bad.prompt], [good.params, bad.params], use_tqdm=False)
    (output,) = llm.generate(good.prompt, good.params, use_tqdm=False)
    assert_equals(output, model(NAME).expected(good))
    assert_nothing_left(llm)


def test_what_just_fits_is_served(llm: LLM, model: Callable[[str], Model]) -> None:
    """As many lanes as rows, and a negative prompt up to the edge of the context."""
    delays = max(model(NAME).reference.delays)
    edge = speech_prompt(MAX_MODEL_LEN - delays - 12, seed=1)
    cases = [
        Case(text="rows", options=PLAIN | _lanes([3, 2], [2], [3, 20, 2])),
        Case(
            text="edge",
            options={
                "max_tokens": 12,
                "ignore_eos": True,
                "guidance_scale": 1.5,
                "negative_prompt_token_ids": edge,
            },
        ),
    ]
    outputs = llm.generate([c.prompt for c in cases], [c.params for c in cases], use_tqdm=False)
    for case, output in zip(cases, outputs, strict=True):
        assert_equals(output, model(NAME).expected(case), str(case))
    assert_nothing_left(llm)


def test_a_model_without_a_null_prompt_needs_a_negative_prompt(
    model: Callable[[str], Model], tmp_path: Path
) -> None:
    folder = CHECKPOINTS[NAME](tmp_path / "no_null_prompt")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["guidance"]
    path.write_text(json.dumps(config))
    with open_engine(folder) as llm:
        good = Case(text="g", options=PLAIN | {"guidance_scale": 3.0, "negative_prompt": "bad"})
        for options in ({"guidance_scale": 3.0}, {"guidance_lanes": [{"weight": 3.0}, _LANE]}):
            with pytest.raises(REFUSED, match=r"must be given: .* no null prompt"):
                llm.generate("hello", SamplingParams(**options), use_tqdm=False)
        (output,) = llm.generate(good.prompt, good.params, use_tqdm=False)
        # The same weights, and a reference to which the configuration's null prompt is nothing.
        assert_equals(output, model(NAME).expected(good))
        assert_nothing_left(llm)
