# SPDX-License-Identifier: Apache-2.0
"""Seeded sampling: the reference's tokens, whatever else is in the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.engine.streams.cases import Case, assert_equals, comparable
from tests.engine.streams.conftest import open_engine
from tests.engine.streams.reference import Reference
from vllm import LLM
from vllm.unison.testing.random_checkpoint import BEGIN_TEXT, FIRST_TEXT

NAME = "switching"
_TEXT = (BEGIN_TEXT, *range(FIRST_TEXT + 60, FIRST_TEXT + 70))

CASES = [
    Case(text="plain", options={"temperature": 1.0, "seed": 1}),
    Case(text="plain", options={"temperature": 1.0, "seed": 2}),
    Case(text="cold", options={"temperature": 0.4, "seed": -(2**63)}),
    Case(text="top k", options={"temperature": 1.5, "top_k": 5, "seed": 2**63 - 2}),
    Case(text="top p", options={"temperature": 1.5, "top_p": 0.7, "seed": 4}),
    Case(
        text="per stream",
        options={
            "seed": 5,
            "stream_temperature": [0.0, 2.0, 0.5, 1.0],
            "stream_top_k": [0, 3, -1, 40],
            "stream_top_p": [1.0, 0.9, 0.3, 0.8],
        },
    ),
    Case(text="one for all", options={"seed": 6, "stream_temperature": 3.0, "stream_top_k": 2}),
    Case(
        token_ids=_TEXT,
        options={"seed": 7, "temperature": 1.0, "top_k": 50, "stream_temperature": 0.7},
    ),
    Case(token_ids=_TEXT, options={"seed": 8, "temperature": 2.0, "top_p": 0.95}),
    # Greedy text, sampled audio; and the other way round.
    Case(token_ids=_TEXT, options={"seed": 9, "stream_temperature": 1.0}),
    Case(token_ids=_TEXT, options={"seed": 10, "temperature": 1.0, "stream_temperature": 0.0}),
    Case(text="greedy"),
]
CASES = [case.with_options(max_tokens=18 + 2 * i) for i, case in enumerate(CASES)]


@pytest.fixture(scope="module")
def llm(checkpoint: Callable[[str], Path]) -> Iterator[LLM]:
    with open_engine(checkpoint(NAME)) as llm:
        yield llm


def test_seeded_tokens_equal_the_references_in_a_crowd_and_alone(
    llm: LLM, reference: Callable[[str], Reference]
) -> None:
    crowd = llm.generate([c.prompt for c in CASES], [c.params for c in CASES], use_tqdm=False)
    reasons = set()
    for case, output in zip(CASES, crowd, strict=True):
        expected = case.expected(reference(NAME))
        assert_equals(output, expected, str(case))
        reasons.add(expected.finish_reason)
    assert reasons == {"stop", "length"}
    for case, output in list(zip(CASES, crowd, strict=True))[::3]:
        alone = llm.generate(case.prompt, case.params, use_tqdm=False)
        assert comparable(alone[0]) == comparable(output), case


def test_children_of_one_request_have_consecutive_seeds(llm: LLM) -> None:
    case = Case(text="three", options={"temperature": 1.0, "seed": 11, "max_tokens": 20})
    three = llm.generate(case.prompt, case.with_options(n=3).params, use_tqdm=False)
    assert [completion.index for completion in three[0].outputs] == [0, 1, 2]
    together = comparable(three[0])
    for index, child in enumerate(together):
        alone = llm.generate(case.prompt, case.with_options(seed=11 + index).params, use_tqdm=False)
        assert comparable(alone[0]) == [child]
    assert together[0] != together[1] != together[2]


def test_requests_without_a_seed_differ(llm: LLM) -> None:
    case = Case(text="again", options={"temperature": 1.0, "max_tokens": 20, "ignore_eos": True})
    params = case.params
    outputs = llm.generate([case.prompt] * 3, params, use_tqdm=False)
    assert len({str(comparable(output)) for output in outputs}) == 3
    assert params.seed is None
    children = llm.generate(case.prompt, case.with_options(n=3).params, use_tqdm=False)
    assert len({str(child) for child in comparable(children[0])}) == 3


def test_greedy_requests_do_not_depend_on_the_seed(llm: LLM) -> None:
    case = Case(text="still", options={"max_tokens": 20})
    prompts = [case.prompt] * 3
    params = [case.params, case.with_options(seed=1).params, case.with_options(seed=2).params]
    outputs = [comparable(output) for output in llm.generate(prompts, params, use_tqdm=False)]
    assert outputs[0] == outputs[1] == outputs[2]
