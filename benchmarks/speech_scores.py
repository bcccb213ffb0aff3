# SPDX-License-Identifier: Apache-2.0
"""What is made of the judges' scores: word errors, means, likeness of voices."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import numpy as np

from vllm.unison.frontend.spoken_text import spoken_text


def compared_words(text: str) -> list[str]:
    """The words of a text as they are compared: said, without case and punctuation."""
    grouped = re.sub(r"(?<![\d.,:])\d{5,}(?![\d:])", lambda number: f"{int(number[0]):,}", text)
    spoken = spoken_text(grouped).lower().replace("-", " ")
    return "".join(c if c.isalpha() or c == "'" else " " for c in spoken).split()


def word_errors(text: str, heard: str) -> int:
    """Words that were replaced, left out or added, the cheapest way."""
    ours, theirs = compared_words(text), compared_words(heard)
    row = list(range(len(theirs) + 1))
    for i, word in enumerate(ours, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(theirs, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (word != other))
    return row[-1]


def error_rate(texts: Sequence[str], heard: Sequence[str]) -> float:
    """Word errors of all sentences over all words."""
    errors = sum(word_errors(text, said) for text, said in zip(texts, heard, strict=True))
    return errors / max(1, sum(len(compared_words(text)) for text in texts))


def mean_known(values: Iterable[float | None]) -> float | None:
    """Mean of the values that are not None; None if there are none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def likeness(
    voice: Sequence[float] | None, others: Iterable[Sequence[float] | None]
) -> float | None:
    """Mean cosine of a voice's embedding and others; None where nothing can be compared."""
    if voice is None:
        return None
    return mean_known(None if other is None else float(np.dot(voice, other)) for other in others)
