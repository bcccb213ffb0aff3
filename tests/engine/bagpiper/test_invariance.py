# SPDX-License-Identifier: Apache-2.0
"""Contract 2 for Bagpiper: what a request gives does not depend on how lanes are scheduled.

All kinds of requests in one batch, sampled and greedy, that end by their rule or by their limit, at
every step of the tail; against a loop over transformers' backbone, and ESPnet's stored answers for
audio.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.bagpiper.reference import BagpiperReference
from tests.engine.bagpiper.test_parity import CASES as STORED
from tests.engine.bagpiper.test_parity import params_of, prompt_of, steps_of
from tests.engine.guidance.conftest import Watch, assert_nothing_left, watch  # noqa: F401
from tests.engine.streams.cases import Case
from tests.engine.streams.conftest import Steps, open_engine
from vllm import SamplingParams

GUIDED: dict[str, Any] = {"guidance_scale": 3.0}
DRAWN: dict[str, Any] = {
    "temperature": 0.9,
    "top_k": 30,
    "stream_temperature": 0.8,
    "stream_top_k": 12,
}
TINY_CACHE: dict[str, Any] = {"num_gpu_blocks_override": 9}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "whole prompts": {"enable_prefix_caching": False},
    "tokens 16, prefix cache, preemption, asynchronous": TINY_CACHE
    | {"max_num_batched_tokens": 16, "enable_prefix_caching": True, "asynchronous": True},
}


def _cases() -> list[Case]:
    speak, caption = "text_to_audio", "caption_to_audio"
    cases = [
        # Ended by the limit at every step of the audio, its tail among them.
        Case("bell", task=caption, options={"max_tokens": count} | GUIDED)
        for count in (1, 6, 7, 8, *range(15, 23))
    ]
    for seed in range(1, 6):
        guidance = GUIDED if seed % 2 else {}
        options = {"max_tokens": 70, "seed": seed} | DRAWN | guidance
        cases.append(Case(f"say {seed} things! slowly", task=speak, options=options))
        cases.append(Case("a longer caption, of bells", task=caption, options=options))
    answer = {"max_tokens": 40, "seed": 1} | DRAWN
    cases.append(Case("what is a bagpipe?", task="text_to_text", options=answer))
    cases.append(Case("what is a bagpipe?", task="text_to_text", options={"max_tokens": 30}))
    return cases


REQUESTS = _cases()
HEARD = [case for case in STORED if case["task"].startswith("audio")]
MAX_HEARD = 60


@pytest.fixture(scope="module")
def expected() -> list[Any]:
    references = {answers: BagpiperReference(answers) for answers in (False, True)}
    return [references[case.task == "text_to_text"].expected(case) for case in REQUESTS]


def test_the_requests_end_in_all_ways(expected: list[Any]) -> None:
    ends = [(case.task, made.finish_reason) for case, made in zip(REQUESTS, expected, strict=True)]
    for task in ("text_to_audio", "caption_to_audio", "text_to_text"):
        assert (task, "stop") in ends
    assert ("caption_to_audio", "length") in ends
    assert len({len(made.codes) for made in expected if made.codes is not None}) > 8


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_all_streams_are_the_same(
    name: str,
    published: Path,
    expected: list[Any],
    watch: Watch,  # noqa: F811
    emitted_steps: Steps,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = dict(CONFIGURATIONS[name])
    asynchronous = options.pop("asynchronous", False)
    monkeypatch.setenv("UNISON_CPU_ASYNC_SCHEDULING", str(int(asynchronous)))
    heard_params = [params_of(case) for case in HEARD]
    for heard in heard_params:
        heard.max_tokens = MAX_HEARD
    prompts = [case.prompt for case in REQUESTS] + [prompt_of(case) for case in HEARD]
    params = [case.params for case in REQUESTS] + heard_params
    with open_engine(published, **options) as llm:
        for turn in range(2):
            emitted_steps.clear()
            outputs = llm.generate(prompts, params, use_tqdm=False)
            steps = {key.split("-")[0]: rows for key, rows in emitted_steps.items()}
            for case, output, made in zip(REQUESTS, outputs, expected, strict=False):
                assert steps[output.request_id] == made.steps, (turn, case)
                audio = output.outputs[0].audio
                assert (None if audio is None else audio.codes.tolist()) == made.codes, case
                assert output.outputs[0].finish_reason == made.finish_reason, case
            for told, output in zip(HEARD, outputs[len(REQUESTS) :], strict=True):
                assert steps[output.request_id] == steps_of(told)[:MAX_HEARD], (turn, told["task"])
            assert_nothing_left(llm)
        if "num_gpu_blocks_override" in options:
            assert watch.guided_mid_generation, watch.preemptions


def test_clips_that_differ_share_no_blocks(published: Path) -> None:
    """Contract 5: of two prompts of equal ids, of which only what is heard differs."""
    rng = np.random.default_rng(1)
    clips = [(0.1 * rng.standard_normal(60000)).astype(np.float32) for _ in range(2)]
    params = SamplingParams(temperature=0, max_tokens=20)
    with open_engine(published, enable_prefix_caching=True) as llm:
        made = [
            llm.generate({"prompt": "", "multi_modal_data": {"audio": c}}, params, use_tqdm=False)
            for c in (clips[0], clips[1], clips[0])
        ]
    first, other, again = (outputs[0] for outputs in made)
    assert first.prompt_token_ids == other.prompt_token_ids
    assert not other.num_cached_tokens and again.num_cached_tokens
    ids = [list(output.outputs[0].token_ids) for output in (first, other, again)]
    assert ids[0] == ids[2] != ids[1]
