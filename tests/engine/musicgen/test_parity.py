# SPDX-License-Identifier: Apache-2.0
"""Contract 1 for MusicGen: codes of all streams equal transformers', from its own folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.guidance.conftest import assert_nothing_left
from tests.engine.musicgen.cases import (
    DRAWN,
    GREEDY,
    LONG,
    MIXED,
    SHORT,
    THREE_LANES,
    MusicCase,
    check_generate,
    codes_of,
    generate,
    noise,
)
from tests.engine.musicgen.reference import MusicReference
from tests.engine.streams.conftest import open_engine
from vllm import LLM, SamplingParams
from vllm.model_executor.models.musicgen import MusicgenForConditionalGeneration

GUIDED = GREEDY | {"guidance_scale": 3.0}


@pytest.fixture(scope="module")
def engine(published: Callable[[str], Path]) -> Iterator[LLM]:
    with open_engine(published("mono")) as llm:
        yield llm


def test_greedy_codes_are_those_of_generate(
    engine: LLM, music: Callable[[str], MusicReference]
) -> None:
    texts = [SHORT, LONG, "lo fi beat"]
    check_generate(engine, music("mono"), texts, 30, [None] * 3)


def test_audio_goes_on_as_with_generate(
    engine: LLM, music: Callable[[str], MusicReference]
) -> None:
    check_generate(engine, music("mono"), ["warm piano", "rock"], 20, [noise(9, 1), noise(40, 2)])


def test_all_kinds_of_requests_in_one_batch(
    engine: LLM, music: Callable[[str], MusicReference]
) -> None:
    """Negative prompts, three lanes, seeds; by the reference's loop."""
    outputs = generate(engine, MIXED)
    for case, output in zip(MIXED, outputs, strict=True):
        assert np.array_equal(codes_of(output), case.expected(music("mono"))), case
    assert_nothing_left(engine)


def test_a_negative_prompt_and_lanes_change_what_is_made(engine: LLM) -> None:
    kinds: list[dict[str, Any]] = [
        {},
        {"guidance_scale": 3.0},
        {"guidance_scale": 3.0, "negative_prompt": "noise"},
        {"guidance_lanes": THREE_LANES},
    ]
    outputs = generate(engine, [MusicCase(SHORT, 30, GREEDY | kind) for kind in kinds])
    assert len({codes_of(output).tobytes() for output in outputs}) == len(kinds)


def test_a_seed_gives_the_same_and_another_seed_does_not(engine: LLM) -> None:
    cases = [MusicCase(SHORT, 20, DRAWN | {"guidance_scale": 3.0, "seed": s}) for s in (1, 2, 1)]
    first, other, again = (codes_of(output).tobytes() for output in generate(engine, cases))
    assert first == again != other


def test_logits_are_those_of_transformers(
    engine: LLM, music: Callable[[str], MusicReference], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[torch.Tensor] = []
    compute = MusicgenForConditionalGeneration.audio_logits

    def recording(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        found.append(compute(self, hidden_states).clone())
        return found[-1]

    monkeypatch.setattr(MusicgenForConditionalGeneration, "audio_logits", recording)
    (output,) = generate(engine, [MusicCase(LONG, 40)])
    expected = music("mono").logits(LONG, codes_of(output))
    logits = torch.cat(found).view(len(found), *expected.shape[1:])
    assert logits.shape == expected.shape
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_a_request_that_says_nothing_gets_the_checkpoints_defaults(engine: LLM) -> None:
    """do_sample, guidance_scale 3.0, and as many frames as there are positions."""
    limit: dict[str, Any] = {"max_tokens": 8}
    plain = SamplingParams(seed=1, **limit)
    said = SamplingParams(seed=1, temperature=1.0, top_k=50, guidance_scale=3.0, **limit)
    defaults = engine.get_default_sampling_params()
    defaults.seed, defaults.max_tokens = 1, 8
    outputs = engine.generate([SHORT] * 2, [defaults, said], use_tqdm=False)
    first, second = (codes_of(output).tolist() for output in outputs)
    assert first == second
    (unguided,) = engine.generate([SHORT], plain, use_tqdm=False)
    assert codes_of(unguided).tolist() != first
    (whole,) = engine.generate([SHORT], use_tqdm=False)
    assert len(codes_of(whole)) == 256 - 1 - 3
