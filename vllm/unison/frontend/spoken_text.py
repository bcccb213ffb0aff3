# SPDX-License-Identifier: Apache-2.0
"""Written English to the words that are said: numbers, dates, money, abbreviations.

A model that reads letters is trained on what this makes of its texts, and is asked with it.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

from kitten_text_processing import Normalizer

_PLAIN = re.compile(r"[A-Za-z ,.?!;:'-]*")
_ABBREVIATION = re.compile(r"\b(?:[A-Za-z]\.){2,}|\b[A-Z]?[a-z]{1,4}\. |\betc\.|\b[A-Z]\. ")
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
_normalizer: Normalizer | None = None


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
        text = " ".join(_read(part) for part in _sentences(text))
    text = unicodedata.normalize("NFKD", text)
    text = "".join(c for c in text if not unicodedata.combining(c))
    for pattern, replacement in _TIDY:
        text = pattern.sub(replacement, text)
    text = text.rstrip(" ,;:-")
    return text[:1].upper() + text[1:] if capital else text


def _sentences(text: str) -> Iterator[str]:
    """The sentences of a text: the grammars' time grows with the length."""
    yield from (part for part in re.split(r"(?<=[a-z\d][.?!;])\s+(?=[A-Z])", text) if part.strip())


def _read(sentence: str) -> str:
    global _normalizer
    if _normalizer is None:
        _normalizer = Normalizer(input_case="cased", lang="en")
    read = _normalizer.normalize(sentence, punct_post_process=True)
    # The grammars write months and weekdays in lower case.
    return _CAPITALIZED.sub(lambda match: match[0].capitalize(), read)
