# SPDX-License-Identifier: Apache-2.0
"""Training on another machine: packed speech, weights in parts, and training from both."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.default_model.training_modules import training_modules
from vllm.unison.frontend.lexicon import Lexicon

encode, layout, model, pack, parts, training = training_modules(
    "encode", "layout", "model", "pack", "parts", "train_language_model"
)

LEXICON = Lexicon({"open": layout.SOUNDS[3] * 2, "called": layout.SOUNDS[9]})
TEXTS = ["Open the door.", "It's late, isn't it?", "Who called?"]


def utterances(seed: int = 0) -> list:
    rng = np.random.default_rng(seed)

    def codes(frames: int) -> np.ndarray:
        found = rng.integers(0, 512, (frames, layout.NUM_STREAMS))
        found[:, 0] = rng.integers(0, 84, frames)
        return found.astype(np.int16)

    made = []
    for index, text in enumerate(TEXTS):
        frames = 14 + 3 * index
        places = np.sort(rng.integers(0, len(text), frames)).astype(np.uint8)
        places[:2] = encode.UNKNOWN
        voice = ["heart", "joe", "many"][index]
        made.append(encode.Encoded(text, voice, codes(frames), codes(frames + index - 1), places))
    return made


def test_what_is_packed_is_unpacked():
    given = utterances()
    for ours, theirs in zip(pack.unpack(pack.pack(given)), given, strict=True):
        assert (ours.text, ours.voice) == (theirs.text, theirs.voice)
        for name in ("codes", "heard", "places"):
            found = getattr(ours, name)
            np.testing.assert_array_equal(found, getattr(theirs, name))
            assert found.dtype == getattr(theirs, name).dtype


def test_the_lexicon_comes_with_what_is_packed(packed_file):
    found = pack.PackedUtterances(packed_file).lexicon
    assert found.respell(TEXTS[0]) == LEXICON.respell(TEXTS[0]) != TEXTS[0]


def test_packed_codes_take_nine_bits():
    given = utterances()
    frames = sum(len(item.codes) for item in given)
    assert pack.pack(given)["clean.acoustic"].nbytes == -(-frames * 7 * 9 // 8)


def test_sketches_are_not_packed():
    given = utterances()
    given[1].codes[:, 1:] = -1
    with pytest.raises(ValueError, match="there are sketches"):
        pack.pack(given)


@pytest.fixture(scope="module")
def packed_file(tmp_path_factory):
    sets = {"train": pack.pack(utterances(0)), "validation": pack.pack(utterances(1)[:2])}
    file = tmp_path_factory.mktemp("packed") / "corpus.npz"
    pack.write(file, sets, LEXICON)
    return file


@pytest.fixture(autouse=True)
def short_steps(monkeypatch):
    monkeypatch.setattr(training, "POSITIONS", 200)


def train(folder, file, steps: int, layers: int, workers: int = 0) -> dict:
    data = pack.PackedUtterances(file)
    place = training.Place("cpu", workers=workers)
    training.train_language_model(folder, steps, 1, layers, data, place)
    return torch.load(folder / parts.CHECKPOINT)


def test_weights_come_back_and_are_trained_further(packed_file, tmp_path):
    first = train(tmp_path, packed_file, 2, 5)
    files = parts.split(tmp_path, tmp_path / "parts", largest=4 << 20)
    assert len(files) > 2 and all(file.stat().st_size < 6 << 20 for file in files)
    other = tmp_path / "other"
    other.mkdir()
    parts.join(other, tmp_path / "parts")
    joined = torch.load(other / parts.CHECKPOINT)
    assert joined["step"] == 2 and set(joined["mean"]) == set(first["mean"])
    for name, weight in joined["mean"].items():
        torch.testing.assert_close(weight, first["mean"][name], rtol=4e-3, atol=1e-6)
    grown = train(other, packed_file, 3, 6, workers=1)
    assert grown["step"] == 3 and model.num_layers(grown["mean"]) == 6


def test_scores_leave_out_what_no_example_has():
    streams = layout.NUM_STREAMS
    sums = {name: torch.ones(1 + streams) for name in ("loss", "hits", "count")}
    assert len(training.scores(sums)) == 6
    sums["count"] = torch.tensor([4] + [0] * streams)
    assert training.scores(sums, "x_") == {"x_text": 0.25, "x_text_accuracy": 0.25}
    # Validation has both kinds: what one lacks is the other's.
    torch.manual_seed(0)
    small = model.StreamLanguageModel(5)
    found = training.validate(small, utterances()[:2], LEXICON)
    assert 5.5 < found["held_out_acoustic"] < 7 and 3 < found["held_out_text"] < 6


def test_parts_without_the_first_are_refused(tmp_path):
    with pytest.raises(ValueError, match="weights_0"):
        parts.join(tmp_path, tmp_path)
