# SPDX-License-Identifier: Apache-2.0
"""benchmark_numerics compares what it says; in float32 other processors say the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import benchmark_numerics as numerics
from benchmarks.numerics_variant import PROCESSORS
from benchmarks.transformers_speech_lm import TransformersSpeechLM
from benchmarks.variant_process import VariantProcess
from vllm.unison.packaged_model import DEFAULT_MODEL, packaged_model

ROOT = Path(__file__).parents[2]


def test_sentences_are_compared_frame_by_frame():
    reference = {"codes": [[[1, 2], [3, 4]], [[5, 6]], [[7, 8]]], "heard": ["a", "b", "c"]}
    assert numerics.compare(reference, reference) == {
        "sentences": 3,
        "same_codes": 3,
        "same_semantic_codes": 3,
        "same_transcripts": 3,
        "first_difference": None,
    }
    # Another acoustic code; one more frame; another semantic code.
    said = {"codes": [[[1, 2], [3, 5]], [[5, 6], [5, 6]], [[9, 8]]], "heard": ["a", "b", "x"]}
    assert numerics.compare(said, reference) == {
        "sentences": 3,
        "same_codes": 0,
        "same_semantic_codes": 1,
        "same_transcripts": 2,
        "first_difference": 1.0,
    }


def test_choices_are_those_of_generation():
    """The logits of a whole sentence at once choose what a loop over steps chose."""
    folder = packaged_model()
    config = json.loads((folder / "config.json").read_text())
    model = TransformersSpeechLM.load(folder, torch.float32)
    prompt = [*config["guidance"]["null_prompt"][:1], 9, 20, 21, 22, 2]
    codes = model.generate_codes([prompt], 6)[0].numpy()
    chosen = numerics.choices(model, prompt, codes).argmax(-1).numpy()
    np.testing.assert_array_equal(chosen, codes)
    # The shift by one step matters.
    assert (numerics.choices(model, prompt[:-1], codes).argmax(-1).numpy() != codes).any()


@pytest.mark.slow
@pytest.mark.nightly
@pytest.mark.processes
def test_another_processor_says_the_same_in_float32():
    spoken = []
    for name in PROCESSORS:
        process = VariantProcess(
            sys.executable,
            ROOT / "benchmarks" / "numerics_variant.py",
            ["--model", DEFAULT_MODEL, "--dtype", "float32", "--processor", name],
        )
        try:
            process.wait_until_ready()
            voices = list(json.loads((packaged_model() / "config.json").read_text())["voices"])
            spoken.append(process.call("speak", numerics.SENTENCES[-6:], voices)["codes"])
        finally:
            process.end()
    assert all(codes == spoken[0] for codes in spoken) and all(spoken[0])
