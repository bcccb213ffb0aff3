# SPDX-License-Identifier: Apache-2.0
"""Sentences that nobody spoke, of which the language model learns to spell and to pronounce."""

from __future__ import annotations

import itertools
import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from tests.default_model.training_modules import training_modules

corpus, encode, phones, pronunciation, sketches, training = training_modules(
    "corpus", "encode", "phones", "pronunciation", "sketches", "train_language_model"
)

SAID = {
    "a": "ɐ",
    "to": "tə",
    "they": "ðA",
    "cat": "kˈæt",
    "sat": "sˈæt",
    "on": "ˈɑn",
    "mat": "mˈæt",
}
SENTENCES = ["A cat sat on a mat.", "A mat, a cat."]


def pronounce(text: str) -> str:
    """What a teacher's package says of the few words."""
    said = [
        SAID[word.lower().strip(".,")] + word[len(word.rstrip(".,")) :] for word in text.split()
    ]
    return " ".join(said)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts, and two voices: each phone of the second one lasts twice as long."""
    folder = tmp_path_factory.mktemp("training")
    (folder / "texts").mkdir()
    lines = "".join(f"example\t{sentence}\n" for sentence in SENTENCES)
    (folder / "texts" / "train.txt").write_text(lines)
    for voice, slow in (("heart", 1), ("joe", 2)):
        stem = folder / "speech" / voice / "00000"
        stem.parent.mkdir(parents=True)
        names = sketches.phones_of(pronounce(SENTENCES[0]))
        ends = np.cumsum([0.1, *[0.05 * slow] * (len(names) - 2), 0.1])
        timed = [(phone, float(end)) for phone, end in zip(names, ends, strict=True)]
        utterance = corpus.Utterance(SENTENCES[0], round(float(ends[-1]) * 16000), timed)
        stem.with_suffix(".jsonl").write_text(json.dumps(asdict(utterance)) + "\n")
        stem.with_suffix(".int16").write_bytes(bytes(2 * utterance.num_samples))
    pronunciation.make_lexicon(SENTENCES, [], pronounce).save(pronunciation.lexicon_file(folder))
    return folder


@pytest.fixture(scope="module")
def made(folder: Path) -> list:
    maker = sketches.Sketches(folder, encode.make_aligner(folder), pronounce)
    rng = np.random.default_rng(1)
    return [maker.draw(rng) for _ in range(200)]


def test_pauses_are_where_punctuation_is():
    assert sketches.phones_of("ɐ kˈæt, ˈɑn!") == ["_", "ə", "k", "æ", "t", "_", "ɑ", "n", "_"]
    assert sketches.phones_of("") == ["_"]


def test_phones_last_as_long_as_the_voice_says_them(folder: Path):
    rng = np.random.default_rng(0)
    for voice, seconds in (("heart", 0.05), ("joe", 0.1)):
        known = sketches.Durations(corpus.Shard(folder / "speech" / voice / "00000").utterances)
        names = sketches.phones_of("kˈæt sˈæt")
        drawn = known.draw(names, rng)
        assert drawn == pytest.approx([0.1, *[seconds] * 6, 0.1])
        # A phone that was never heard lasts as long as any.
        assert known.draw(["_", "ʒ", "_"], rng) == pytest.approx([0.1, 0.08, 0.1])


def test_a_sketch_says_its_phones_and_knows_no_more(made):
    texts = {item.text for item in made}
    assert set(SENTENCES) < texts
    rows = texts - set(SENTENCES)
    assert len(rows) > 20 and all(2 <= len(row.split()) <= 4 for row in rows)
    assert all(row.endswith(".") and row[0].isupper() for row in rows)
    for item in made:
        assert item.voice in ("heart", "joe")
        assert (item.codes[:, 1:] == -1).all() and (item.heard[:, 1:] == -1).all()
        assert len(item.places) == len(item.codes)
        names = sketches.phones_of(pronounce(item.text))
        kinds = [int(label) // 2 for label in item.codes[:, 0]]
        said = [kind for kind, _ in itertools.groupby(kinds)]
        expected = [kind for kind, _ in itertools.groupby(map(phones.phone_index, names))]
        assert said == expected


def test_voices_differ_in_pace(made):
    paces = {
        voice: np.mean([len(i.codes) / len(i.text) for i in made if i.voice == voice])
        for voice in ("heart", "joe")
    }
    assert paces["joe"] > 1.3 * paces["heart"]


def test_what_is_heard_is_sometimes_another_label():
    timed = [("_", 0.2), ("k", 0.4), ("_", 0.6)]
    utterance = corpus.Utterance("k", 9600, timed)
    labels = phones.frame_labels(timed, 15, 0.04)
    codes = np.zeros((15, 8), np.int16)
    codes[:, 0] = labels
    codes[7, 0] = 30
    item = encode.Encoded("k", "heart", codes, codes, np.zeros(15, np.uint8))
    table = sketches.confusions([(utterance, item)] * 50)
    wrong = labels[7]
    assert table.sum(1) == pytest.approx(np.ones(len(table)))
    others = int((labels == wrong).sum()) - 1
    assert table[wrong, 30] == pytest.approx(50 / (50 * (others + 1) + 1))
    assert table[0, 0] > 0.99


def test_a_part_of_what_is_learned_are_sketches(folder: Path, monkeypatch):
    monkeypatch.setattr(
        training.Utterances,
        "_make_sketches",
        lambda self: sketches.Sketches(folder, self._aligner, pronounce),
    )
    data = training.Utterances(folder)
    real = {id(item) for item in data.all}
    rng = np.random.default_rng(2)
    drawn = [data.draw(rng) for _ in range(400)]
    share = np.mean([id(item) not in real for item in drawn])
    assert abs(share - training.SKETCHED) < 0.08
    batch = next(training.batches(data, rng, 600))
    assert batch[0].shape[2] == 8 and (batch[1] >= 0).any()


def test_without_texts_there_are_no_sketches(folder: Path, tmp_path: Path):
    for name in ("speech", pronunciation.lexicon_file(folder).name):
        (tmp_path / name).symlink_to(folder / name)
    data = training.Utterances(tmp_path)
    drawn = [data.draw(np.random.default_rng(seed)) for seed in range(20)]
    assert {id(item) for item in drawn} <= {id(item) for item in data.all}
