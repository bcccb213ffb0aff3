# SPDX-License-Identifier: Apache-2.0
"""Ids of all streams, and audio, are those of ESPnet's own class and of a loop over transformers.

What ESPnet's class generates is in espnet.json, written by tests/references/espnet/opuslm.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.engine.opuslm.cases import CASES, MAX_MODEL_LEN, OpusCase
from tests.engine.streams.cases import assert_equals
from tests.engine.streams.conftest import Steps, open_engine
from tests.engine.streams.reference import Reference
from tests.support import opuslm as model
from vllm import LLM
from vllm.unison.codecs import load_codec

ESPNET = json.loads(Path(__file__).with_name("espnet.json").read_text())
OF_ESPNET = {
    "text_to_speech": [OpusCase("text_to_speech", t) for t in ("a test", "more words to say", "x")],
    "speech_to_text": [OpusCase("speech_to_text", clip=(n, n)) for n in (5, 20)],
    "voice_prompted_speech": [OpusCase("voice_prompted_speech", "hi", (7, 1))],
}
Engine = tuple[str, LLM]


@pytest.fixture(scope="module", params=list(model.BACKBONES))
def engine(
    request: Any, published: Callable[[str], Path], reference: Callable[[str], Reference]
) -> Iterator[Engine]:
    """The backbone's name, and an engine."""
    # Before the engine, which replaces a class of transformers' OLMo-2.
    reference(request.param)
    with open_engine(published(request.param), max_model_len=MAX_MODEL_LEN) as llm:
        yield request.param, llm


def test_espnets_own_class(engine: Engine, emitted_steps: Steps) -> None:
    kind, llm = engine
    expected = [found for task in OF_ESPNET for found in ESPNET[kind][task]]
    cases = [case for task in OF_ESPNET.values() for case in task]
    assert [case.frames for case in cases] == [
        [*found["prompt"], [found["begin"], *[0] * 8]] for found in expected
    ]
    # ESPnet's decoder stops in the middle of its tail where the limit is near.
    outputs = llm.generate(
        [case.prompt for case in cases],
        [case.with_max_tokens(80).params for case in cases],
        use_tqdm=False,
    )
    for case, found, output in zip(cases, expected, outputs, strict=True):
        completion = output.outputs[0]
        steps = found["steps"]
        if found["begin"] == model.BEGIN_TEXT:
            # It runs on for eight steps after text as well.
            steps = steps[: len(found["frames"]) + 1]
        assert completion.finish_reason == "stop", case
        assert list(completion.token_ids) == [step[0] for step in steps], case
        if found["begin"] == model.BEGIN_TEXT:
            assert completion.audio is None
            continue
        (emitted,) = (s for name, s in emitted_steps.items() if name.startswith(output.request_id))
        assert emitted == steps, case
        assert completion.audio is not None
        assert completion.audio.codes.tolist() == codes_of(found["frames"]), case


def codes_of(frames: list[list[int]]) -> list[list[int]]:
    """Codes of ESPnet's frames of ids; a pad is code 0."""
    firsts = [model.FIRST_CODE + k * model.NUM_CODES for k in range(8)]
    return [
        [max(token - first, 0) for token, first in zip(frame[1:], firsts, strict=True)]
        for frame in frames
    ]


def test_a_loop_over_transformers(
    engine: Engine, reference: Callable[[str], Reference], emitted_steps: Steps, cache: Path
) -> None:
    kind, llm = engine
    outputs = llm.generate(
        [case.prompt for case in CASES], [case.params for case in CASES], use_tqdm=False
    )
    finished = set()
    for case, output in zip(CASES, outputs, strict=True):
        expected = case.expected(reference(kind))
        assert_equals(output, expected, repr(case))
        (emitted,) = (s for name, s in emitted_steps.items() if name.startswith(output.request_id))
        assert emitted == expected.steps, case
        finished.add((expected.codes is None, expected.finish_reason))
    assert len(finished) == 4, finished
    codec = load_codec(str(Path(llm.llm_engine.model_config.model) / "codec"))
    audio = outputs[0].outputs[0].audio
    assert audio is not None and len(audio.codes) > 2
    samples = codec.decode(torch.from_numpy(audio.codes)).numpy()
    np.testing.assert_allclose(audio.samples, samples, atol=1e-6)
    texts = [output.outputs[0].text for output in outputs]
    assert all(not texts[i] for i in (0, 1, 2, 3)) and texts[4] and texts[9]


def test_defaults_are_those_of_espnets_decoding(engine: Engine) -> None:
    _, llm = engine
    spoken, heard = (
        OpusCase("text_to_speech", "a test").prompt,
        OpusCase("speech_to_text", clip=(9, 1)).prompt,
    )
    first, second = llm.generate([spoken, heard], use_tqdm=False)
    # Without a word of parameters text is greedy, and both are as long as they want to be.
    again = llm.generate([heard], OpusCase("", options={"max_tokens": 200}).params, use_tqdm=False)
    assert list(second.outputs[0].token_ids) == list(again[0].outputs[0].token_ids)
    assert first.outputs[0].audio is not None


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        (
            {"multi_modal_data": {"audio": np.zeros(3200, np.float32)}},
            r"audio: the encoder of speech units, 'espnet/xeus', must be .* codes of all streams",
        ),
        (
            {"prompt": "hi", "multi_modal_data": {"voice": (np.zeros(3200, np.float32), 16000)}},
            r"voice: the encoder of speech units, 'espnet/xeus', must be a folder",
        ),
        (
            {"multi_modal_data": {"audio": {"codes": [[0] * 8]}}},
            r"codes must be integers of shape \[num_frames, 9\], not int64 of shape \[1, 8\]",
        ),
        (
            {"multi_modal_data": {"audio": {"codes": [[39] + [0] * 8, [40] + [0] * 8]}}},
            r"codes of column 0 must be in \[0, 40\), not 40",
        ),
        (
            {"multi_modal_data": {"audio": {"codes": [[0] * 8 + [16]]}}},
            r"codes of column 8 must be in \[0, 16\), not 16",
        ),
        ({"prompt": "hi", "mm_processor_kwargs": {"task": "asr"}}, r"task must be one of \["),
    ],
)
def test_requests_that_are_refused(engine: Engine, prompt: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine[1].generate([{"prompt": ""} | prompt], use_tqdm=False)
