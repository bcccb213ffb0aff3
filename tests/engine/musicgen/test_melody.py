# SPDX-License-Identifier: Apache-2.0
"""MusicGen Melody: codes of all streams equal transformers', whatever is scheduled beside them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.engine.guidance.conftest import Watch, assert_nothing_left, watch  # noqa: F401
from tests.engine.musicgen.cases import DRAWN, GREEDY, MusicCase, codes_of, generate
from tests.engine.musicgen.melody import tune
from tests.engine.musicgen.reference import MusicReference
from tests.engine.streams.conftest import open_engine
from vllm import LLM

GUIDED = GREEDY | {"guidance_scale": 3.0}
TEXT, LONGER = "warm piano", "lo fi beat, slow drums and piano. noise jazz rock"
RISING, FALLING = tune([0, 2, 4, 5, 7, 9]), tune([12, 9, 5, 2, -3] * 3)
"""Shorter and longer than the positions of a melody."""


@pytest.fixture(scope="module")
def engine(published: Callable[[str], Path]) -> Iterator[LLM]:
    with open_engine(published("melody")) as llm:
        yield llm


def test_greedy_codes_are_those_of_generate(
    engine: LLM, music: Callable[[str], MusicReference]
) -> None:
    """Guided and not, with melodies and without."""
    cases = [
        MusicCase(text, 30, options, clip)
        for text in (TEXT, LONGER)
        for options in (GREEDY, GUIDED)
        for clip in (None, RISING, FALLING)
    ]
    outputs = generate(engine, cases)
    for case, output in zip(cases, outputs, strict=True):
        scale = case.options.get("guidance_scale", 1.0)
        codes, samples = music("melody").generate(case.text, 30, scale, case.clip)
        assert np.array_equal(codes_of(output), codes), case
        audio = output.outputs[0].audio
        assert audio is not None
        np.testing.assert_allclose(audio.samples, samples, atol=1e-5)
    assert len({codes_of(output).tobytes() for output in outputs}) == len(cases)
    assert_nothing_left(engine)
