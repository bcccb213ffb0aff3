# SPDX-License-Identifier: Apache-2.0
"""Contract 1 for Higgs Audio v2: codes of all streams equal transformers', from its own folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.engine.guidance.conftest import assert_nothing_left
from tests.engine.higgs_audio_v2.cases import MIXED, Case
from tests.engine.higgs_audio_v2.reference import HiggsReference, Sampling
from tests.engine.streams.conftest import open_engine
from vllm import LLM
from vllm.unison.codecs.base import Codec
from vllm.unison.frontend.defaults import task_defaults
from vllm.unison.frontend.errors import InvalidRequestError


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[LLM]:
    with open_engine(folder, max_model_len=384) as llm:
        yield llm


def check(engine: LLM, reference: HiggsReference, codec: Codec, cases: list[Case]) -> list[int]:
    """Codes and samples of a batch; returns the stream of each case that ended first."""
    outputs = engine.generate([c.prompt for c in cases], [c.params for c in cases], use_tqdm=False)
    first = []
    for case, output in zip(cases, outputs, strict=True):
        steps = case.steps(reference, codec)
        expected = reference.frames(steps)
        (completion,) = output.outputs
        # The first step is in the prompt.
        assert len(completion.token_ids) == len(steps) - 1, case
        audio = completion.audio
        codes = np.empty((0, 8)) if audio is None else audio.codes
        assert np.array_equal(codes, expected), case
        if len(expected):
            samples = codec.decode(torch.from_numpy(expected)).numpy()
            assert audio is not None and np.array_equal(audio.samples, samples), case
        ended = (steps == reference.end)[:-8].any(axis=0)
        first += np.flatnonzero(ended)[:1].tolist()
    assert_nothing_left(engine)
    return first


def test_greedy_codes_are_those_of_generate(
    engine: LLM, reference: HiggsReference, codec: Codec
) -> None:
    texts = ["The sun rises.", "A", "Hello there, how are you?", "the end", "What?", "Oh no!"]
    cases = [Case(text, max_tokens=100) for text in texts]
    check(engine, reference, codec, cases)


def test_all_kinds_of_requests_in_one_batch(
    engine: LLM, reference: HiggsReference, codec: Codec
) -> None:
    check(engine, reference, codec, MIXED)


def test_sampled_codes_and_repetitions_are_the_references(
    engine: LLM, reference: HiggsReference, codec: Codec
) -> None:
    """Windows of several lengths; codes that are drawn again come often with so few of them."""
    settings = [
        Sampling(1, 0.5, window=7), Sampling(2, 1.0, 5, window=2, max_repeats=1),
        Sampling(3, 0.7, 0, 0.9, window=9, max_repeats=3), Sampling(4, 0.3),
        Sampling(5, 0.0, window=7),
    ]  # fmt: skip
    cases = [Case("The sun rises in the east.", sampling=s, max_tokens=25) for s in settings]
    redrawn = []
    for case in cases:
        case.steps(reference, codec)
        redrawn.append(reference.num_redrawn)
    assert redrawn[3] == 0 and min(redrawn[:3] + redrawn[4:]) > 0, redrawn
    check(engine, reference, codec, cases)


def test_a_conversation_is_a_chat(engine: LLM, reference: HiggsReference, codec: Codec) -> None:
    """LLM.chat, of one and of several; and streamed audio is the offline audio."""
    cases = [case for case in MIXED if case.scene is not None]
    params = [case.params for case in cases]
    several = engine.chat([case.messages for case in cases], params, use_tqdm=False)
    alone = engine.chat(cases[0].messages, params[0], use_tqdm=False)
    for case, output in zip([*cases, cases[0]], [*several, *alone], strict=True):
        audio = output.outputs[0].audio
        assert audio is not None
        assert np.array_equal(audio.codes, case.expected(reference, codec))
    with pytest.raises(InvalidRequestError, match="chat_template is not supported"):
        engine.chat(cases[0].messages, chat_template="{{ messages }}")
    with pytest.raises(InvalidRequestError, match=r"messages\[1\]\.role must be 'user'"):
        engine.chat(cases[0].messages[:2], params[0], use_tqdm=False)


def test_defaults_are_those_of_the_server_and_the_file(engine: LLM) -> None:
    """generation_config.json has a window, and no sampling."""
    engine.generate("The sun rises.", use_tqdm=False)
    params = engine.get_default_sampling_params()
    assert params.ras_win_len is None
    defaults = task_defaults(engine.model_config)["speak"]
    assert defaults == {
        "temperature": 0.7, "top_p": 0.95, "max_tokens": 2048, "ras_win_len": 7,
        "ras_win_max_num_repeat": 2,
    }  # fmt: skip
