# SPDX-License-Identifier: Apache-2.0
"""What transformers' own generate is compared as in the benchmark computes what the engine does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.transformers_speech_lm import TransformersSpeechLM
from tests.engine.streams.reference import Guidance, Reference, Settings
from vllm.unison.testing.random_checkpoint import (
    BEGIN_AUDIO,
    BEGIN_TEXT,
    FIRST_TEXT,
    stream_layout,
    write_random_speech_lm,
)

PROMPTS = [
    [BEGIN_TEXT, *(FIRST_TEXT + (11 * row + 5 * i) % 256 for i in range(6)), BEGIN_AUDIO]
    for row in range(3)
]
FRAMES = 12
STREAMS = 4


@pytest.fixture(
    scope="module", params=[(0, 1, 2, 3), (0, 3, 0, 1)], ids=["staircase", "uneven delays"]
)
def folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    return write_random_speech_lm(
        tmp_path_factory.mktemp("model"),
        layout=stream_layout(STREAMS, delays=request.param),
        codec=None,
        guidance={"null_prompt": "pads", "audio_only": False},
    )


@pytest.mark.parametrize("scale", [None, 2.5])
def test_codes_are_those_of_the_reference(folder: Path, scale: float | None) -> None:
    reference = Reference(folder)
    guidance = None if scale is None else Guidance(scale, ((1 - scale, None),))
    settings = Settings(
        max_tokens=FRAMES,
        max_model_len=256,
        ignore_eos=True,
        streams=((0.0, 0, 1.0),) * STREAMS,
    )
    model = TransformersSpeechLM.load(folder, torch.float32)
    codes = model.generate_codes(PROMPTS, FRAMES, scale)
    assert codes.shape == (len(PROMPTS), FRAMES, STREAMS)
    for row, prompt in enumerate(PROMPTS):
        steps = reference.delayed([[token, *reference.pads[1:]] for token in prompt])
        expected = reference.generate(steps, settings, guidance)
        assert min(expected.margins) > 1e-4, "the choice would hang on rounding"
        assert codes[row].tolist() == expected.codes


def test_sampling_stays_in_top_k_and_varies(folder: Path) -> None:
    model = TransformersSpeechLM.load(folder, torch.float32)
    greedy = model.generate_codes(PROMPTS, FRAMES)
    assert torch.equal(model.generate_codes(PROMPTS, FRAMES, temperature=0.8, top_k=1), greedy)
    torch.manual_seed(0)
    assert not torch.equal(model.generate_codes(PROMPTS, FRAMES, temperature=0.8, top_k=30), greedy)


def test_what_does_not_fit_is_refused(folder: Path, tmp_path: Path) -> None:
    model = TransformersSpeechLM.load(folder, torch.float32)
    with pytest.raises(ValueError, match="equally long"):
        model.generate_codes([[2], [3, 2]], 4)
    with pytest.raises(ValueError, match="guidance scale"):
        model.generate_codes(PROMPTS, 4, guidance_scale=0.5)
    other = write_random_speech_lm(tmp_path, backbone="qwen3", codec=None)
    with pytest.raises(ValueError, match=r"backbone_config\.model_type"):
        TransformersSpeechLM.load(other, torch.float32)
