# SPDX-License-Identifier: Apache-2.0
"""Contract 1 with guidance: tokens of all streams equal those of an independent reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.engine.guidance.cases import (
    GUIDANCE,
    PLAIN,
    SAMPLED,
    THREE_LANES,
    Model,
    speech_prompt,
    text_ids,
)
from tests.engine.guidance.checkpoints import CHECKPOINTS
from tests.engine.guidance.conftest import assert_nothing_left
from tests.engine.streams.cases import Case, assert_equals, noise_clip
from tests.engine.streams.conftest import Steps, open_engine
from vllm.unison.compatibility import ASYNC_ON_CPU
from vllm.unison.testing.random_checkpoint import BEGIN_TEXT


def _cases(model: Model) -> list[Case]:
    """Guidance of every kind, on prompts that end in text or in audio."""
    cases = []
    for index, guidance in enumerate(GUIDANCE):
        text = "abcdefghijklmnopqrstuvwxyz"[: 1 + 5 * index % 26]
        cases.append(Case(text=text, options=PLAIN | guidance))
        if index % 3:
            continue
        # Text first, of a length that guidance may have a say in; then audio where that may follow.
        ids = (BEGIN_TEXT, *text_ids(text))
        cases.append(Case(token_ids=ids, options={"max_tokens": 40} | guidance))
    sampled: dict[str, Any] = SAMPLED | {"max_tokens": 40}
    cases += [
        Case(text="ends by itself", options={"max_tokens": 60, "guidance_scale": 1.5}),
        Case(text="later", options={"max_tokens": 60, "guidance_scale": 1.5, "min_tokens": 30}),
        Case(text="seeded", options=sampled | {"guidance_scale": 3.0, "seed": 1}),
        Case(text="seeded", options=sampled | {"guidance_lanes": THREE_LANES, "seed": 2}),
        Case(text="not guided", options=sampled | {"seed": 3}),
        Case(
            token_ids=(BEGIN_TEXT, *text_ids("to audio")),
            options=sampled | {"guidance_scale": 2.0, "guidance_interval": (2, 11), "seed": 4},
        ),
        Case(text="v", clip=noise_clip(9, seed=3), options=PLAIN | {"guidance_scale": 3.0}),
        Case(clip=noise_clip(11, seed=1), options={"max_tokens": 20, "guidance_scale": 3.0}),
        # A prompt of more than two blocks, whose negative prompt is short.
        Case(token_ids=tuple(speech_prompt(80)), options=PLAIN | {"guidance_scale": 3.0}),
        Case(text="one frame", options={"max_tokens": 1, "guidance_scale": 3.0}),
    ]
    return cases


@pytest.mark.parametrize(
    ("name", "asynchronous"),
    # Lanes of these two may join while a token is in flight.
    [*((name, False) for name in CHECKPOINTS), ("audio_only", True), ("pads", True)],
)
def test_tokens_of_all_streams_equal_the_references(
    name: str,
    asynchronous: bool,
    model: Callable[[str], Model],
    emitted_steps: Steps,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(ASYNC_ON_CPU, str(int(asynchronous)))
    cases = _cases(model(name))
    with open_engine(model(name).folder) as llm:
        outputs = llm.generate([c.prompt for c in cases], [c.params for c in cases], use_tqdm=False)
        assert_nothing_left(llm)
    by_request = {key.split("-")[0]: steps for key, steps in emitted_steps.items()}
    reasons, with_audio = set(), 0
    for case, output in zip(cases, outputs, strict=True):
        expected = model(name).expected(case)
        assert_equals(output, expected, f"{name} {case}")
        assert by_request[output.request_id] == expected.steps, case
        reasons.add(expected.finish_reason)
        with_audio += expected.codes is not None
    assert reasons == {"stop", "length"}
    assert with_audio > 20
