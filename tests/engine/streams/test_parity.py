# SPDX-License-Identifier: Apache-2.0
"""Contract 1: tokens of all streams equal those of an independent reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.engine.streams.cases import Case, assert_equals, noise_clip
from tests.engine.streams.checkpoints import CHECKPOINTS
from tests.engine.streams.conftest import Steps, open_engine
from tests.engine.streams.reference import Reference
from vllm.unison.testing.random_checkpoint import BEGIN_AUDIO, BEGIN_TEXT, FIRST_TEXT


def _text(letters: str) -> list[int]:
    return [FIRST_TEXT + ord(letter) % 256 for letter in letters]


def _continuation(reference: Reference, num_steps: int, seed: int) -> Case:
    """A prompt that breaks off within audio, its delayed streams included."""
    random = np.random.default_rng(seed)
    prompt = [BEGIN_TEXT, *_text("go on"), BEGIN_AUDIO]
    ids = np.tile(np.array(reference.pads, np.int32), (len(prompt) + num_steps, 1))
    ids[: len(prompt), 0] = prompt
    for stream, delay in enumerate(reference.delays):
        rows = slice(len(prompt) + delay, None)
        begin, end = reference.slices[stream]
        ids[rows, stream] = random.integers(begin, end, len(ids[rows]))
    return Case(
        token_ids=tuple(ids[:, 0].tolist()),
        auxiliary_ids=np.ascontiguousarray(ids[:, 1:]),
        options={"max_tokens": 12},
    )


def _cases(reference: Reference) -> list[Case]:
    cases = [
        Case(text=text, options={"max_tokens": 40})
        for text in ("hello", "a", "multi-stream generation", "one more", "and the last one")
    ]
    if 0 in reference.codebook_streams:
        cases += [
            Case(clip=noise_clip(11, seed=1), options={"max_tokens": 20}),
            Case(clip=noise_clip(3, seed=2), options={"max_tokens": 30, "min_tokens": 30}),
            Case(text="voice", clip=noise_clip(9, seed=3), options={"max_tokens": 30}),
            Case(text="v", clip=noise_clip(1, seed=4), options={"max_tokens": 25, "min_tokens": 9}),
        ]
        sampled = {"temperature": 0.9, "top_k": 30, "max_tokens": 25}
        cases += [
            Case(clip=noise_clip(7, seed=1), options=sampled | {"seed": 1}),
            Case(text="hello", clip=noise_clip(12, seed=2), options=sampled | {"seed": 2}),
        ]
    cases += [
        Case(text="no end", options={"max_tokens": 33, "ignore_eos": True}),
        Case(text="one frame", options={"max_tokens": 1}),
        Case(text="two", options={"max_tokens": 2}),
    ]
    cases += [
        Case(token_ids=(BEGIN_TEXT, *_text(text)), options={"max_tokens": 45})
        for text in ("only text", "more text", "text of any length", "x")
    ]
    # No begin token: generation starts in the first phase.
    cases.append(Case(token_ids=tuple(_text("nothing")), options={"max_tokens": 15}))
    if reference.num_streams > 1:
        cases += [_continuation(reference, steps, steps) for steps in (1, 2, 13)]
    return cases


@pytest.mark.parametrize("name", list(CHECKPOINTS))
def test_tokens_of_all_streams_equal_the_references(
    name: str,
    checkpoint: Callable[[str], Path],
    reference: Callable[[str], Reference],
    emitted_steps: Steps,
) -> None:
    cases = _cases(reference(name))
    with open_engine(checkpoint(name)) as llm:
        outputs = llm.generate([c.prompt for c in cases], [c.params for c in cases], use_tqdm=False)
    reasons, audio, after_text, segments = set(), 0, 0, 0
    assert len(emitted_steps) == len(cases)
    by_request = {key.split("-")[0]: steps for key, steps in emitted_steps.items()}
    for case, output in zip(cases, outputs, strict=True):
        expected = case.expected(reference(name))
        assert output.prompt_token_ids == [
            s[0] for s in case.reference_prompt(reference(name)).steps
        ]
        assert_equals(output, expected, f"{name} {case}")
        assert by_request[output.request_id] == expected.steps, case
        reasons.add(expected.finish_reason)
        audio += expected.codes is not None
        segments = max(segments, expected.num_segments)
        starts_with_text = case.token_ids is not None and BEGIN_AUDIO not in case.token_ids
        after_text += starts_with_text and expected.codes is not None
    assert reasons == {"stop", "length"}
    assert audio > 3
    assert segments == 1 or name == "switching"
    assert segments > 1 or name != "switching"
    leads_to_audio = any(t["to"] == "audio" for t in reference(name).phases["text"]["transitions"])
    assert after_text > 0 or not leads_to_audio
