# SPDX-License-Identifier: Apache-2.0
"""The variants of benchmark_side_by_side.py generate the same in float32, greedily."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.naive_guidance import PairedGuidance, pair_params, tokens_apart
from benchmarks.transformers_speech_lm import TransformersSpeechLM
from tests.engine.streams.conftest import open_engine
from tests.engine.streams.text_model import write_text_model
from vllm import SamplingParams
from vllm.unison.testing.random_checkpoint import (
    BEGIN_AUDIO,
    BEGIN_TEXT,
    FIRST_TEXT,
    write_random_speech_lm,
)

NULL = [1]
LENGTH = 16
SCALE = 2.5
PROMPTS = [[FIRST_TEXT + (11 * row + 5 * i) % 250 for i in range(9)] for row in range(3)]


@pytest.fixture(scope="module")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("text"), seed=5, vocab_size=512)


def test_pairs_get_what_guidance_gives(text_model: Path) -> None:
    common: dict[str, Any] = {"max_tokens": LENGTH, "ignore_eos": True, "detokenize": False}
    pairs = [{"prompt_token_ids": ids} for prompt in PROMPTS for ids in (prompt, NULL)]
    prompts = [{"prompt_token_ids": prompt} for prompt in PROMPTS]
    with open_engine(text_model, logits_processors=[PairedGuidance]) as llm:

        def tokens(given: list[Any], params: list[SamplingParams]) -> list[list[int]]:
            outputs = llm.generate(given, params, use_tqdm=False)
            return [list(output.outputs[0].token_ids) for output in outputs]

        greedy = [
            lane
            for row in range(len(PROMPTS))
            for lane in pair_params(row, SCALE, temperature=0.0, **common)
        ]
        seeded = [
            lane
            for row in range(len(PROMPTS))
            for lane in pair_params(row, SCALE, temperature=0.8, top_k=30, seed=row, **common)
        ]
        naive = tokens(pairs, greedy)
        sampled = tokens(pairs, seeded)
        guided = tokens(
            prompts,
            [
                SamplingParams(
                    temperature=0.0,
                    guidance_scale=SCALE,
                    negative_prompt_token_ids=NULL,
                    **common,
                )
            ]
            * len(PROMPTS),
        )
        plain = tokens(prompts, [SamplingParams(temperature=0.0, **common)] * len(PROMPTS))
        # Without seeds, equal logits do not make equal tokens: what the count is there for.
        unseeded = [
            lane
            for row in range(len(PROMPTS))
            for lane in pair_params(row, SCALE, temperature=2.0, **common)
        ]
        loose = tokens(pairs, unseeded)
    assert naive[::2] == guided
    assert guided != plain
    assert not any(map(tokens_apart, naive[::2], naive[1::2]))
    assert not any(map(tokens_apart, sampled[::2], sampled[1::2]))
    assert any(map(tokens_apart, loose[::2], loose[1::2]))


def test_transformers_gives_the_codes_of_the_engine(tmp_path: Path) -> None:
    # The benchmark's checkpoint has no codec; with one, the engine hands out all streams' codes.
    folder = write_random_speech_lm(tmp_path, guidance={"null_prompt": "pads", "audio_only": False})
    prompts = [[BEGIN_TEXT, *prompt, BEGIN_AUDIO] for prompt in PROMPTS]
    given: list[Any] = [{"prompt_token_ids": prompt} for prompt in prompts]
    model = TransformersSpeechLM.load(folder, torch.float32)
    expected = {scale: model.generate_codes(prompts, LENGTH, scale) for scale in (None, SCALE)}
    with open_engine(folder) as llm:
        for scale, codes in expected.items():
            params = SamplingParams(
                temperature=0.0, max_tokens=LENGTH, ignore_eos=True, guidance_scale=scale
            )
            outputs = llm.generate(given, params, use_tqdm=False)
            for row, output in enumerate(outputs):
                completion = output.outputs[0]
                assert completion.audio is not None
                assert completion.audio.codes.tolist() == codes[row].tolist()
    assert not torch.equal(expected[None], expected[SCALE])


@pytest.mark.slow
@pytest.mark.nightly
def test_quick_run_without_upstream(tmp_path: Path) -> None:
    script = Path(__file__).parents[3] / "benchmarks" / "benchmark_side_by_side.py"
    output = tmp_path / "side_by_side.json"
    subprocess.run(
        [sys.executable, str(script), "--quick", "--rounds", "1", "--output-json", str(output)],
        check=True,
        capture_output=True,
        cwd=tmp_path,
    )
    report = json.loads(output.read_text())
    assert report["variants"]["fork"]["threads"] == report["variants"]["transformers"]["threads"]
    (model,) = report["models"]
    assert model["upstream"] == "not measured"
    assert [(row["requests"], row["guided"]) for row in model["transformers"]] == [
        (1, True),
        (1, False),
        (2, True),
        (2, False),
    ]
    assert all(row["fork_over_transformers"]["ratio"] > 0 for row in model["transformers"])
