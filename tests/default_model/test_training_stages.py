# SPDX-License-Identifier: Apache-2.0
"""From speech to codes: the stages of the training, on a few clips of noise."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.default_model.training_modules import training_modules

corpus, codec, encode, place, training = training_modules(
    "corpus", "train_codec", "encode", "place", "train_language_model"
)

PHONES = [("_", 0.1), ("k", 0.3), ("æ", 0.5), ("t", 0.7), ("_", 0.9), ("s", 1.1), ("_", 1.2)]


def write_shard(stem: Path, seed: int) -> None:
    """Three utterances of noise, the last one shorter."""
    rng = np.random.default_rng(seed)
    clips = [(3000 * rng.standard_normal(size)).astype("<i2") for size in (19200, 19200, 16000)]
    lines = [asdict(corpus.Utterance("Cat, s.", len(clip), PHONES)) for clip in clips]
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix(".int16").write_bytes(b"".join(clip.tobytes() for clip in clips))
    stem.with_suffix(".jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    for number, voice in enumerate(("heart", "joe", "many")):
        write_shard(folder / "speech" / voice / "00000", number)
    for part in ("validation", "evaluation"):
        for voice in ("heart", "joe"):
            write_shard(folder / "speech" / part / voice, 7)
    return folder


@pytest.fixture(scope="module")
def trained(folder) -> Path:
    """The folder with a codec of two steps, the second one of a run that went on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "BATCH", 2)
        codec.train_codec(folder, 100, seconds=1e-9)
        assert torch.load(folder / "codec_checkpoint.pt")["step"] == 1
        codec.train_codec(folder, 2, place.Place(workers=1))
        assert torch.load(folder / "codec_checkpoint.pt")["step"] == 2
    return folder


def test_sketches_become_codes_without_a_restart(trained):
    data = training.Utterances(trained)
    assert len(data.all) == 9
    assert all((item.codes[:, 1:] == -1).all() for item in data.all)
    encode.encode(trained)
    data.look_for_more()
    assert len(data.all) == 9
    for item in data.all:
        assert item.codes.min() >= 0 and item.codes.max() < 512
        assert len(item.places) == len(item.codes) in (25, 30)
        assert abs(len(item.heard) / len(item.codes) - 1) < 0.2
    assert len(data.held_out("validation")) == 6
    # Speech that comes later is added, as a sketch.
    write_shard(trained / "speech" / "joe" / "00001", 5)
    data.look_for_more()
    assert [int((item.codes[:, 1:] == -1).all()) for item in data.all].count(1) == 3


def test_codes_do_not_depend_on_what_was_encoded_before(trained):
    encode.encode(trained)
    file = trained / "codes" / "many" / "00000.npz"
    first = dict(np.load(file))
    file.unlink()
    encode.encode(trained, place.Place(workers=2))
    again = dict(np.load(file))
    for name, array in first.items():
        np.testing.assert_array_equal(array, again[name], err_msg=name)


def test_a_long_batch_is_the_size_that_was_asked_for(folder):
    batch = next(iter(codec.ClipBatches(folder, [0], 5)))
    assert [len(part) for part in batch] == [5, 5, 5]
    assert batch[0].shape[1] == 25 * 640 and batch[0].dtype == torch.float32


def test_a_place_says_what_it_takes():
    with pytest.raises(ValueError, match="scale must be at least 1, got 0"):
        place.Place(scale=0)
    with pytest.raises(ValueError, match="workers must be at least 0, got -1"):
        place.Place(workers=-1)
