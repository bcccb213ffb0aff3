# SPDX-License-Identifier: Apache-2.0
"""How words are said is told where it is certain, and the model looks at the right sounds."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tests.default_model.training_modules import training_modules
from vllm.unison.frontend.lexicon import Lexicon

encode, layout, phones, pronunciation, training = training_modules(
    "encode", "layout", "phones", "pronunciation", "train_language_model"
)

SAID = {"a": "ɐ", "to": "tə", "they": "ðˈA", "cat": "kˈæt", "had": "hæd", "been": "bˈɪn"}


def pronounce(text: str) -> str:
    """What a teacher's package says: "record" and "the" are said in two ways."""
    said = []
    words = re.findall(r"[a-z']+|[.,]", text.lower())
    for before, word in zip(["", *words], words, strict=False):
        if word == "record":
            said.append(" ɹəkˈɔɹd" if before in ("to", "they") else " ɹˈɛkəɹd")
        elif word == "the":
            said.append(" ði" if len(said) % 2 else " ðə")
        else:
            said.append(word if word in ".," else " " + SAID.get(word, "zˈu"))
    return "".join(said).strip()


def sounds(spelled: str) -> str:
    names = [*phones.PHONES[1:], *phones.STRESS]
    return "".join(names[layout.SOUNDS.index(sign)] for sign in spelled)


def test_sounds_are_those_of_the_phones():
    assert sounds(pronunciation.spelling("kˈæt, bˌɪn!")) == "kˈætbˌɪn"
    # Rare ones are taken for others, as in the codec's labels.
    assert sounds(pronunciation.spelling("ɐᵊɾ")) == "əəT"


def test_words_go_together_with_their_phones():
    pairs = pronunciation.words_as_said("A cat, the zoo.", pronounce("A cat, the zoo."))
    assert [(word, sounds(said)) for word, said in pairs] == [
        ("a", "ə"),
        ("cat", "kˈæt"),
        ("the", "ði"),
        ("zoo", "zˈu"),
    ]
    assert pronunciation.words_as_said("live-in or not", "lˈɪvɪn") == []


def test_only_what_is_certain_is_in_the_lexicon():
    sentences = ["The cat had a cat."] * 2 + ["A cat, the cat, the cat."]
    found = pronunciation.make_lexicon(sentences, ["record", "been"], pronounce)
    spelled = {word: sounds(found.respell(word)) for word in ("cat", "a", "been", "had")}
    assert spelled == {"cat": "kˈæt", "a": "ə", "been": "bˈɪn", "had": "hæd"}
    # "record" is another word behind "to", and "the" has two ways.
    assert found.respell("record the") == "record the"


@pytest.fixture
def lexicon() -> Lexicon:
    a, b, c = layout.SOUNDS[:3]
    return Lexicon({"two": a + b, "threes": a + b + c})


def test_letters_and_sounds_are_at_the_same_place(lexicon):
    told, moved = training.respell("Two threes, four.", lexicon)
    a, b, c = layout.SOUNDS[:3]
    assert told == f"{a}{b} {a}{b}{c}, four."
    # Space, comma and the letters of "four" are found again; words lie in the same stretch.
    for letter, sign in ((3, 2), (10, 6), (12, 8), (16, 12)):
        assert moved(np.array([letter])) == pytest.approx(sign)
    inside = moved(np.arange(4, 10))
    assert (np.diff(inside) > 0).all() and inside[0] >= 2.5 and inside[-1] <= 5.5


def test_some_words_keep_their_letters_in_training(lexicon):
    rng = np.random.default_rng(1)
    told = [training.respell("two", lexicon, rng)[0] for _ in range(1000)]
    assert abs(told.count("two") / 1000 - training.IN_LETTERS) < 0.03


def test_what_is_told_is_what_the_engine_is_asked_with(lexicon):
    """The text of an example is the lexicon's, and its frames look at the sounds they have."""
    codes = np.zeros((4, layout.NUM_STREAMS), np.int16)
    places = np.array([0, 2, encode.UNKNOWN, 4], np.uint8)
    item = encode.Encoded("Two four.", "joe", codes, codes, places)
    example = training.speech_example(item, lexicon)
    ids = layout.text_ids(lexicon.respell(item.text))
    assert example.steps[2 : 2 + len(ids), 0].tolist() == ids
    first = int((example.targets != layout.IGNORE).any(1).argmax())
    looked = example.focus[first : first + 4]
    assert looked[2] == layout.NOWHERE
    signs = [int(example.steps[round(float(place)), 0]) for place in looked[[0, 1, 3]]]
    assert signs == [ids[0], ids[1], ids[3]]
