# SPDX-License-Identifier: Apache-2.0
"""Stereo MusicGen: eight streams, and audio of two channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.engine.musicgen.cases import GREEDY, MusicCase, check_generate, generate, noise
from tests.engine.musicgen.reference import MusicReference
from tests.engine.streams.conftest import open_engine
from vllm import LLM


@pytest.fixture(scope="module")
def engine(published: Callable[[str], Path]) -> Iterator[LLM]:
    with open_engine(published("stereo")) as llm:
        yield llm


def test_codes_are_those_of_generate(engine: LLM, music: Callable[[str], MusicReference]) -> None:
    check_generate(engine, music("stereo"), ["jazz drums", "slow"], 25, [None, None])


def test_audio_goes_on_in_both_channels(
    engine: LLM, music: Callable[[str], MusicReference]
) -> None:
    check_generate(engine, music("stereo"), ["rock"], 20, [noise(11, 3, channels=2)])


def test_a_mono_clip_goes_on_in_both_channels(engine: LLM) -> None:
    clip = noise(11, 3)
    cases = [MusicCase("rock", 9, GREEDY, one) for one in (clip, np.stack([clip, clip], axis=1))]
    mono, stereo = (output.outputs[0].audio for output in generate(engine, cases))
    assert mono.num_channels == stereo.num_channels == 2
    assert np.array_equal(mono.codes, stereo.codes)
