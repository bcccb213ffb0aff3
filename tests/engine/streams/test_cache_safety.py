# SPDX-License-Identifier: Apache-2.0
"""Contract 5: requests that differ in any stream share no block from there on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.engine.streams.cases import BLOCK_SIZE, Case, assert_equals
from tests.engine.streams.conftest import Steps, open_engine
from tests.engine.streams.reference import Reference
from vllm import LLM
from vllm.unison.testing.random_checkpoint import BEGIN_AUDIO

NAME = "llama"
LENGTH = 4 * BLOCK_SIZE + 7


@pytest.fixture(scope="module")
def llm(checkpoint: Callable[[str], Path]) -> Iterator[LLM]:
    with open_engine(checkpoint(NAME), enable_prefix_caching=True) as llm:
        yield llm


@pytest.fixture(autouse=True)
def _empty_cache(llm: LLM) -> None:
    assert llm.reset_prefix_cache()


def _codes(reference: Reference, seed: int) -> Case:
    """A prompt of codes on all streams, which generation continues."""
    random = np.random.default_rng(seed)
    ids = np.stack([random.integers(begin, end, LENGTH) for begin, end in reference.slices], axis=1)
    ids[0] = BEGIN_AUDIO, *reference.pads[1:]
    for stream, delay in enumerate(reference.delays):
        ids[1 : 1 + delay, stream] = reference.pads[stream]
    return Case(
        token_ids=tuple(ids[:, 0].tolist()),
        auxiliary_ids=ids[:, 1:].astype(np.int32),
        options={"max_tokens": 12, "ignore_eos": True},
    )


def _differing(case: Case, reference: Reference, position: int, stream: int) -> Case:
    """The same stream 0, and another code of one stream at one position."""
    assert case.auxiliary_ids is not None
    ids = case.auxiliary_ids.copy()
    begin, end = reference.slices[stream]
    cell = ids[position, stream - 1]
    assert begin <= cell < end
    ids[position, stream - 1] = cell + 1 if cell + 1 < end else begin
    return replace(case, auxiliary_ids=ids)


def _run(llm: LLM, case: Case, reference: Reference) -> int:
    """Cached tokens of a request, whose output must be the reference's all the same."""
    output = llm.generate(case.prompt, case.params, use_tqdm=False)[0]
    assert_equals(output, case.expected(reference), str(case))
    assert output.num_cached_tokens is not None
    return output.num_cached_tokens


@pytest.mark.parametrize("stream", [1, 2, 3])
@pytest.mark.parametrize("position", [12, 2 * BLOCK_SIZE, 3 * BLOCK_SIZE - 1])
def test_blocks_are_shared_up_to_the_first_that_differs_in_an_auxiliary_stream(
    llm: LLM, reference: Callable[[str], Reference], position: int, stream: int
) -> None:
    case = _codes(reference(NAME), seed=position + stream)
    assert _run(llm, case, reference(NAME)) == 0
    assert _run(llm, case, reference(NAME)) == 4 * BLOCK_SIZE
    other = _differing(case, reference(NAME), position, stream)
    assert _run(llm, other, reference(NAME)) == position // BLOCK_SIZE * BLOCK_SIZE
    assert _run(llm, other, reference(NAME)) == 4 * BLOCK_SIZE


def test_two_audios_in_one_batch_do_not_mix(
    llm: LLM, reference: Callable[[str], Reference]
) -> None:
    case = _codes(reference(NAME), seed=1)
    cases = [
        case,
        _differing(case, reference(NAME), 9, 2),
        _differing(case, reference(NAME), 80, 3),
    ]
    for _ in range(2):
        outputs = llm.generate([c.prompt for c in cases], [c.params for c in cases], use_tqdm=False)
        for one, output in zip(cases, outputs, strict=True):
            assert_equals(output, one.expected(reference(NAME)))


def test_generated_blocks_are_hashed_with_all_their_streams(
    llm: LLM, reference: Callable[[str], Reference], emitted_steps: Steps
) -> None:
    """What was generated serves as the prefix of a prompt that repeats it, in all streams only."""
    first = Case(text="say", options={"max_tokens": 3 * BLOCK_SIZE, "ignore_eos": True})
    output = llm.generate(first.prompt, first.params, use_tqdm=False)[0]
    prompt = first.reference_prompt(reference(NAME)).steps
    (steps,) = emitted_steps.values()
    num_frames = first.options["max_tokens"]
    whole: NDArray[np.int32] = np.array(prompt + steps[:num_frames], np.int32)
    assert whole[:, 0].tolist() == [
        *(output.prompt_token_ids or ()),
        *output.outputs[0].token_ids[:num_frames],
    ]
    again = Case(
        token_ids=tuple(whole[:, 0].tolist()),
        auxiliary_ids=np.ascontiguousarray(whole[:, 1:]),
        options={"max_tokens": 10},
    )
    blocks = (len(whole) - 1) // BLOCK_SIZE
    assert blocks == 3
    other = _differing(again, reference(NAME), 2 * BLOCK_SIZE + 3, 2)
    assert _run(llm, other, reference(NAME)) == 2 * BLOCK_SIZE
    assert _run(llm, again, reference(NAME)) == 3 * BLOCK_SIZE
