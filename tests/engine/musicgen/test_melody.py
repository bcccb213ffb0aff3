# SPDX-License-Identifier: Apache-2.0
"""Contract 1 for MusicGen Melody: codes of all streams equal transformers', from its own folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.guidance.conftest import assert_nothing_left, runner_of
from tests.engine.musicgen.cases import GREEDY, MusicCase, codes_of, generate
from tests.engine.musicgen.melody import (
    FALLING,
    GUIDED,
    LONGER,
    MIXED,
    RISING,
    TEXT,
    MelodyReference,
    bins_of,
)
from tests.engine.musicgen.reference import MusicReference
from tests.engine.streams.conftest import open_engine
from tests.support.musicgen import CHROMA_LENGTH, t5_tokenizer
from vllm import LLM, SamplingParams
from vllm.unison.frontend.errors import InvalidRequestError
from vllm.unison.messages.conditioning import PrefixInput


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


def test_prefixes_are_those_of_generate(
    engine: LLM, music: Callable[[str], MusicReference]
) -> None:
    reference = music("melody")
    assert isinstance(reference, MelodyReference)
    ids, bins = t5_tokenizer().encode(LONGER), bins_of(RISING)
    repeated = bytes(bins.tolist() * CHROMA_LENGTH)[:CHROMA_LENGTH]
    inputs = [
        PrefixInput(repeated, ids, len(ids)),
        PrefixInput(bytes(CHROMA_LENGTH), [], len(ids)),
    ]
    found = torch.stack(runner_of(engine).model.prefix_states(inputs))
    torch.testing.assert_close(found, reference.prefixes(ids, bins), atol=1e-5, rtol=0)
    assert (found[1, CHROMA_LENGTH:] == 0).all() and (found[1, :CHROMA_LENGTH] != 0).any()


def test_all_kinds_of_requests_in_one_batch(
    engine: LLM, music: Callable[[str], MusicReference]
) -> None:
    """Negative prompts, three lanes, seeds; by the reference's loop."""
    outputs = generate(engine, MIXED)
    for case, output in zip(MIXED, outputs, strict=True):
        assert np.array_equal(codes_of(output), case.expected(music("melody"))), case
    assert_nothing_left(engine)


def test_audio_is_not_continued(engine: LLM) -> None:
    kwargs = {"duration": 2, "extend_stride": 0.5}
    prompt: Any = {"prompt": TEXT, "mm_processor_kwargs": kwargs}
    message = "^extend_stride is not supported: the model does not go on from audio"
    with pytest.raises(InvalidRequestError, match=message):
        engine.generate(prompt, SamplingParams(**GREEDY), use_tqdm=False)
