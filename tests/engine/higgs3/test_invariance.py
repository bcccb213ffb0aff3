# SPDX-License-Identifier: Apache-2.0
"""Contract 2 for Higgs TTS 3, with ends at every place that its rule knows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.guidance.conftest import assert_nothing_left
from tests.engine.higgs3.cases import MIXED, HiggsCase, assert_equals, generate, rows_of
from tests.engine.higgs3.reference import Higgs3Reference, Speech
from tests.engine.streams.conftest import Steps, open_engine
from tests.support.higgs3 import END, NUM_STREAMS
from vllm import LLM
from vllm.sampling_params import RequestOutputKind

CHUNKED = {"max_num_batched_tokens": 16}
TINY_CACHE = {"num_gpu_blocks_override": 9}
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "tokens 16, prefix cache": CHUNKED | {"enable_prefix_caching": True},
    "preemption, tokens 16": TINY_CACHE | CHUNKED | {"enable_prefix_caching": False},
    "preemption, prefix cache, asynchronous": TINY_CACHE
    | {"enable_prefix_caching": True, "asynchronous": True},
}


@pytest.fixture(scope="module")
def reference(higgs: Callable[[str], Higgs3Reference]) -> Higgs3Reference:
    return higgs("ends")


@pytest.fixture(scope="module")
def expected(reference: Higgs3Reference) -> list[Speech]:
    return [case.expected(reference) for case in MIXED]


def test_the_cases_end_in_every_way(expected: list[Speech]) -> None:
    """What the engine is compared with: in none of it an end is where the rule ignores it."""
    primary = [speech.rows[:, 0] for speech in expected]
    ended = [speech for speech in expected if speech.ended]
    assert 4 <= len(ended) <= len(MIXED) - 4
    lengths = {len(speech.codes) for speech in ended}
    # At the first row that may end, and later.
    assert min(lengths) == NUM_STREAMS and len(lengths) >= 4
    assert {len(speech.rows) - len(speech.codes) for speech in expected} == {NUM_STREAMS - 1}
    # Ends that are ignored in the first rows, and more of them in the tail, where all is sampled.
    ignored = [(rows[:NUM_STREAMS] == END).any() for rows in primary]
    assert sum(ignored) >= 4
    tails = [speech.rows[len(speech.codes) + 1 :, 0] for speech in ended]
    assert any((tail == END).any() for tail in tails) and any((tail != END).any() for tail in tails)
    # Limits before the first row that may end, and after it.
    limits = {len(speech.codes) for speech in expected if not speech.ended}
    assert min(limits) < NUM_STREAMS < max(limits)


@pytest.mark.parametrize("name", list(CONFIGURATIONS))
def test_rows_are_the_same(
    name: str,
    published: Callable[[str], Path],
    expected: list[Speech],
    emitted_steps: Steps,
    preempted: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = dict(CONFIGURATIONS[name])
    asynchronous = options.pop("asynchronous", False)
    monkeypatch.setenv("UNISON_CPU_ASYNC_SCHEDULING", str(int(asynchronous)))
    with open_engine(published("ends"), **options) as llm:
        config = llm.llm_engine.vllm_config
        assert config.scheduler_config.async_scheduling is asynchronous
        for _ in range(2):
            outputs = generate(llm, MIXED)
            by_request = {key.split("-")[0]: steps for key, steps in emitted_steps.items()}
            for case, output, speech in zip(MIXED, outputs, expected, strict=True):
                assert_equals(output, speech, case)
                assert np.array_equal(rows_of(by_request[output.request_id]), speech.rows), case
            assert_nothing_left(llm)
        if "num_gpu_blocks_override" in options:
            assert preempted
        if options["enable_prefix_caching"]:
            assert sum(output.num_cached_tokens or 0 for output in outputs) > 0
        if asynchronous:
            check_streamed(llm, expected)


def check_streamed(llm: LLM, expected: list[Speech]) -> None:
    """The frames of a streamed request, joined, are those of the whole."""
    for index in range(0, len(MIXED), 5):
        case = MIXED[index]
        delta = {"output_kind": RequestOutputKind.DELTA}
        params = HiggsCase(case.text, case.max_frames, case.options | delta).params
        llm.llm_engine.add_request(f"streamed-{index}", case.prompt, params)
        codes: list[list[int]] = []
        while llm.llm_engine.has_unfinished_requests():
            for output in llm.llm_engine.step():
                audio = output.outputs[0].audio  # type: ignore[union-attr, index]
                codes += [] if audio is None else audio.codes.tolist()
        assert codes == expected[index].codes.tolist(), case
