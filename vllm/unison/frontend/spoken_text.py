# SPDX-License-Identifier: Apache-2.0
"""Written English to the words that are said: numbers, dates, money, abbreviations.

A model that reads letters is trained on what this makes of its texts, and is asked with it.
"""

from __future__ import annotations

import functools
import itertools
import re
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kitten_text_processing import Normalizer

_PLAIN = re.compile(r"[A-Za-z ,.?!;:'-]*")
_ABBREVIATION = re.compile(r"[A-Za-z]\.[A-Z]\b|\b[A-Z]?[a-z]{1,4}\. |\betc\.|\b[A-Z]\. ")
_REPLACEMENTS = (
    (re.compile("[‘’ʼ`]"), "'"),
    (re.compile('[“”„«»"]|\\*|_'), ""),
    (re.compile(r"\s*(?:--+|—|–(?!\d)|\s-\s)\s*"), ", "),
    (re.compile("…|[.]{2,}"), "."),
    (re.compile(r"\s*[(\[{]\s*"), ", "),
    (re.compile(r"\s*[)\]}]\s*"), ", "),
    (re.compile(r"\s&\s"), " and "),
)
_TIDY = (
    (re.compile(r"[^A-Za-z ,.?!;:'-]+"), " "),
    (re.compile(r"(?<![A-Za-z])'|'(?![A-Za-z])"), " "),
    (re.compile(r"(?<![A-Za-z])-|-(?![A-Za-z])"), " "),
    (re.compile(r"\s+([,.?!;:])"), r"\1"),
    (re.compile(r"([,.?!;:])(?=[A-Za-z])"), r"\1 "),
    (re.compile(r"[,.;:]+([.?!])"), r"\1"),
    (re.compile(r"([,.?!;:])[,.;:]+"), r"\1"),
    (re.compile(r"\s+"), " "),
    (re.compile(r"^[ ,.?!;:-]+"), ""),
)
_CAPITALIZED = re.compile(
    r"\b(?:january|february|april|june|july|august|september|october|november|december|"
    r"(?:mon|tues|wednes|thurs|fri|satur|sun)day)\b|(?<=of )(?:march|may)\b"
)
_BEFORE, _AFTER = 1, 2
"""Words around a figure that may belong to it: a month, a unit."""

_TOGETHER = 10
"""Words that are read together, at most."""

_WORD_PARTS = re.compile(r".{1,40}")
"""What is longer is no word."""


def spoken_text(text: str) -> str:
    """The text as it is read aloud, in letters, spaces, and ``, . ? ! ; : ' -``.

    Args:
        text: English, of any length. Characters that have no reading are dropped.

    Returns:
        Words in their case, with the punctuation that shapes how they are said.
    """
    text = unicodedata.normalize("NFKC", text)
    capital = text[:1].isupper()
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    if not _PLAIN.fullmatch(text) or _ABBREVIATION.search(text):
        text = " ".join(_written_out(part) for part in _sentences(text))
    text = unicodedata.normalize("NFKD", text)
    text = "".join(c for c in text if not unicodedata.combining(c))
    for pattern, replacement in _TIDY:
        text = pattern.sub(replacement, text)
    text = text.rstrip(" ,;:-")
    return text[:1].upper() + text[1:] if capital else text


def _sentences(text: str) -> Iterator[str]:
    yield from (part for part in re.split(r"(?<=[a-z\d][.?!;])\s+(?=[A-Z])", text) if part.strip())


def _written_out(sentence: str) -> str:
    """A sentence with all words, those read that are none yet, with the words around them.

    The grammars' time grows faster than the length, so they see no more than a few words at once.
    """
    words = [part for word in sentence.split() for part in _WORD_PARTS.findall(word)]
    read = [False] * len(words)
    for i, word in enumerate(words):
        if not _PLAIN.fullmatch(word) or _ABBREVIATION.search(f"{word} "):
            around = slice(max(0, i - _BEFORE), i + 1 + _AFTER)
            read[around] = [True] * len(read[around])
    pieces: list[str] = []
    start = 0
    for is_read, run in itertools.groupby(read):
        end = start + len(list(run))
        if is_read:
            for at in range(start, end, _TOGETHER):
                pieces.append(_read(" ".join(words[at : min(end, at + _TOGETHER)])))
        else:
            pieces += words[start:end]
        start = end
    return " ".join(pieces)


@functools.lru_cache(maxsize=4096)
def _read(words: str) -> str:
    read = _normalizer().normalize(words, punct_post_process=True)
    # The grammars write months and weekdays in lower case.
    return _CAPITALIZED.sub(lambda match: match[0].capitalize(), read)


@functools.cache
def _normalizer() -> Normalizer:
    # Imported here: few texts need it.
    from kitten_text_processing import Normalizer

    return Normalizer(input_case="cased", lang="en")
