# SPDX-License-Identifier: Apache-2.0
"""Written English is read as it is said."""

from __future__ import annotations

import re

import pytest

from vllm.unison.frontend import spoken_text as spoken_text_module
from vllm.unison.frontend.spoken_text import spoken_text

READ = {
    "Please open the door.": "Please open the door.",
    "The train to Leeds leaves at 9:30.": "The train to Leeds leaves at nine thirty.",
    "I paid $12.50 for 3 books!": "I paid twelve dollars fifty cents for three books!",
    "It costs £3.20, 50% off.": "It costs three pounds twenty pence, fifty percent off.",
    "Mr. and Mrs. Brown": "Mister and misses Brown",
    "She was born on Jan. 5th, 1999.": "She was born on January fifth, nineteen ninety nine.",
    "the 21st of May": "the twenty first of May",
    "20°C and 3.5 kg": "twenty degrees Celsius and three point five kilograms",
    "“Stop!” she said — don’t.": "Stop! she said, don't.",
    "naïve café": "naive cafe",
    "We (usually) go ...": "We, usually, go.",
    "the dogs' bones": "the dogs bones",
    "united.by confidence": "united. by confidence",
    "BBC": "BBC",
    "Mr. Smith, Ph.D., lives at 12 St. John St.": (
        "Mister Smith, PHD, lives at twelve St. John St."
    ),
    "": "",
    "...": "",
}


@pytest.mark.parametrize("written", READ)
def test_reading(written: str) -> None:
    assert spoken_text(written) == READ[written]


@pytest.mark.parametrize("written", READ)
def test_reading_twice_changes_nothing(written: str) -> None:
    assert spoken_text(READ[written]) == READ[written]


@pytest.mark.parametrize("written", [written for written in READ if READ[written]])
def test_a_text_around_changes_no_reading(written: str) -> None:
    """Only the words around a figure are read with it."""
    words = "the quick brown dog and all the others"
    read = spoken_text(f"{words} so they say: {written} And {words}")
    assert read.lower() == f"{words} so they say: {READ[written]} and {words}".lower()


@pytest.mark.parametrize("part", ["1 2 3 ", "7", "In 1999 there were 1,234 people. ", "£5,"])
def test_a_long_text_takes_no_more_than_its_length(part: str, monkeypatch) -> None:
    """The grammars' time grows with the square of what they see."""
    seen: list[str] = []

    def read(words: str) -> str:
        seen.append(words)
        return words

    monkeypatch.setattr(spoken_text_module, "_read", read)
    spoken_text(part * (800 // len(part)))
    assert max(map(len, seen)) <= 410 and sum(map(len, seen)) <= 1000


@pytest.mark.parametrize(
    "written", ["日本 7", "a\tb\n\nc", "x=y*2^3", "#1 @home", "😀 5 <3", "\x00"]
)
def test_only_letters_and_punctuation_come_out(written: str) -> None:
    assert re.fullmatch(r"[A-Za-z ,.?!;:'-]*", spoken_text(written))
