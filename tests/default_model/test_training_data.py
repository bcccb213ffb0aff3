# SPDX-License-Identifier: Apache-2.0
"""What the default model was trained on is what the engine gives it."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from vllm.transformers_utils.configs.speech_lm import SpeechLMConfig
from vllm.unison.codecs.of_model import codec_of
from vllm.unison.frontend.prompts import PromptBuilder
from vllm.unison.model.spec import SpeechSpec
from vllm.unison.packaged_model import packaged_model

sys.path.append(str(Path(__file__).parents[2] / "examples" / "train_default_model" / "version_1"))
import layout
import train_language_model as training
import vocabulary
from phones import NUM_LABELS, PHONES, frame_labels


@pytest.fixture(scope="module")
def spec() -> SpeechSpec:
    config = SpeechLMConfig.from_pretrained(packaged_model())
    return SpeechSpec.from_config(config, str(packaged_model()))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(packaged_model() / "tokenizer.json"))


def stack_streams(built: Any) -> np.ndarray:
    """[num_prompt_tokens, num_streams] of an engine input."""
    ids = np.array(built["prompt_token_ids"])
    return np.column_stack([ids, built["auxiliary_token_ids"][: len(ids)]])


def test_prompts_of_speech_are_those_of_training(spec, tokenizer):
    text = "please open green door"
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    built = PromptBuilder(spec).build(
        {"prompt": text, "prompt_token_ids": ids, "mm_processor_kwargs": {"voice": "awb"}}
    )
    codes = np.random.default_rng(1).integers(0, 82, (9, layout.NUM_STREAMS))
    steps, targets = layout.speech_example(codes, ids, "awb")
    prompt = stack_streams(built)
    np.testing.assert_array_equal(prompt, steps[: len(prompt)])
    # The first target is the first code, and is predicted from the prompt's last step.
    first = (targets != layout.IGNORE).any(1).argmax()
    assert first == len(prompt) - 1
    assert targets[first, 0] == codes[0, 0] + layout.slice_begin(0)


def test_the_null_prompt_is_that_of_training(spec):
    steps, _ = layout.speech_example(np.zeros((5, layout.NUM_STREAMS), int), [], None)
    assert spec.null_prompt == tuple(steps[: len(layout.NULL_PROMPT), 0])


def test_prompts_of_transcription_are_those_of_training(spec, tokenizer):
    clip = 0.1 * np.random.default_rng(2).standard_normal(16000).astype(np.float32)
    codes = codec_of(spec, "cpu").encode(torch.from_numpy(clip)).numpy()
    built = PromptBuilder(spec).build(
        {"prompt_token_ids": [], "multi_modal_data": {"audio": (clip, 16000)}}
    )
    text = tokenizer.encode("six today", add_special_tokens=False).ids
    steps, targets = layout.transcription_example(codes, text)
    prompt = stack_streams(built)
    np.testing.assert_array_equal(prompt, steps[: len(prompt)])
    said = targets[len(prompt) - 1 :, 0]
    assert said[said != layout.IGNORE].tolist() == [*text, layout.END]


def test_prompts_of_continuation_are_those_of_training(spec):
    clip = 0.1 * np.random.default_rng(3).standard_normal(9000).astype(np.float32)
    codes = codec_of(spec, "cpu").encode(torch.from_numpy(clip)).numpy()
    built = PromptBuilder(spec).build(
        {
            "prompt_token_ids": [],
            "multi_modal_data": {"audio": (clip, 16000)},
            "mm_processor_kwargs": {"task": "speech_continuation"},
        }
    )
    steps, _ = layout.continuation_example(np.concatenate([codes, codes]), len(codes))
    prompt = stack_streams(built)
    np.testing.assert_array_equal(prompt, steps[: len(prompt)])


def test_targets_are_the_next_steps_ids():
    rng = np.random.default_rng(4)
    codes = rng.integers(0, 512, (20, layout.NUM_STREAMS))
    for steps, targets in (
        layout.speech_example(codes, [20, 21], "slt"),
        layout.continuation_example(codes, 7),
        layout.transcription_example(codes, [20, 21]),
    ):
        known = targets[:-1] != layout.IGNORE
        np.testing.assert_array_equal(targets[:-1][known], steps[1:][known])
        assert (targets[-1] == layout.IGNORE).all()


def test_every_frame_and_the_end_are_targets_once():
    codes = np.random.default_rng(5).integers(0, 512, (20, layout.NUM_STREAMS))
    _, targets = layout.speech_example(codes, [20], None)
    for stream in range(layout.NUM_STREAMS):
        said = targets[:, stream][targets[:, stream] != layout.IGNORE].tolist()
        expected = (codes[:, stream] + layout.slice_begin(stream)).tolist()
        assert said == expected + ([layout.END] if stream == 0 else [])


def test_the_tokenizer_restores_every_word(tokenizer):
    for word in vocabulary.WORDS:
        ids = tokenizer.encode(word, add_special_tokens=False).ids
        assert all(layout.FIRST_TEXT <= token < layout.FIRST_CODE for token in ids)
        assert tokenizer.decode(ids) == word
    ids = tokenizer.encode("Open, the  WINDOW!", add_special_tokens=False).ids
    assert tokenizer.decode(ids) == "open the window"


def test_sentences_are_reproducible_and_split():
    training_set = list(itertools.islice(vocabulary.sentences(1, False), 500))
    assert training_set == list(itertools.islice(vocabulary.sentences(1, False), 500))
    held_out = set(itertools.islice(vocabulary.sentences(1, True), 100))
    assert not held_out & set(training_set)
    assert all(1 <= len(s.split()) <= 8 for s in training_set)
    assert {w for s in training_set for w in s.split()} <= set(vocabulary.WORDS)
    assert len(vocabulary.WORDS) >= 100


def test_labels_follow_the_phones():
    labels = frame_labels([("pau", 0.1), ("s", 0.18), ("ih", 0.3)], 10, 0.04)
    silence, s, ih = (2 * PHONES.index(p) for p in ("pau", "s", "ih"))
    # Middles at 0.02, 0.06, 0.10, ... seconds; from the middle of a phone on it is the second half.
    assert labels.tolist() == [
        silence, silence + 1, s, s + 1, ih, ih, ih + 1, 0, 0, 0,
    ]  # fmt: skip
    assert labels.max() < NUM_LABELS


def test_spliced_utterances_lose_the_silence_between_them():
    silence, speech = [[0] * 8, [1] * 8], [[9] * 8, [8] * 8]
    codes = np.array(silence + speech + silence, np.int16)
    data = training.Encoded([codes] * 4, [codes] * 4, [[20]] * 4, ["slt"] * 4)
    splicer, rng = training.Splicer(data), np.random.default_rng(6)
    made = [splicer.splice(0, rng) for _ in range(40)]
    longer = [m for m in made if len(m.texts[0]) == 2]
    assert 0 < len(longer) < 40
    for utterance in longer:
        assert utterance.codes[0][:, 0].tolist() == [0, 1, 9, 8, 9, 8, 0, 1]


def test_a_step_of_training_lowers_the_loss():
    """The training model computes what it should: a small batch can be learnt by heart."""

    torch.manual_seed(0)
    codes = np.random.default_rng(7).integers(0, 512, (6, layout.NUM_STREAMS))
    ids, targets = training.collate(
        [layout.speech_example(codes, [20], "slt"), layout.transcription_example(codes, [21, 22])]
    )
    model = training.StreamLanguageModel()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for _ in range(25):
        sums = model(ids, targets)
        optimizer.zero_grad()
        (sums["loss"].sum() / sums["count"].sum()).backward()
        optimizer.step()
    assert sums["count"].tolist() == [3, 7] + [6] * 7
    assert (sums["hits"] == sums["count"]).all()
