# SPDX-License-Identifier: Apache-2.0
"""Labels of what is said in each frame, for the codec's semantic codebook."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

PAUSE = "_"
"""The phone of silence."""

STRESS = "ˈˌ"
PUNCTUATION = ' ,.;:!?—…"()“”'

Phones = list[tuple[str, float]]
"""(phone, end in seconds) in order."""

PHONES = str.split(
    "_ A I O W Y æ ɑ ɔ ə ɛ ɜ i ɪ u ʊ ʌ b d f h j k l m n p s t v w z ɡ ŋ ɹ ʃ ʒ ð θ ʤ ʧ T"
)
"""English phones in misaki's alphabet; "_" is silence."""

NUM_LABELS = 2 * len(PHONES)
"""A phone's first and second half have labels of their own, so that a doubled phone is two."""

SAME = {"ɐ": "ə", "ᵊ": "ə", "ᵻ": "ɪ", "ɾ": "T", "ɚ": "ə", "ɒ": "ɑ", "a": "æ", "e": "ɛ", "o": "O"}
"""Phones that are taken for others."""

_INDEX = {phone: index for index, phone in enumerate(PHONES)}
_RARE = "ə"


def merge_pauses(phones: Phones) -> Phones:
    """One pause where several follow each other."""
    merged: Phones = []
    for phone, end in phones:
        if phone == PAUSE and merged and merged[-1][0] == PAUSE:
            merged.pop()
        merged.append((phone, end))
    return merged


def timed_phones(symbols: list[str], seconds: list[float], short_pause: float = 0.03) -> Phones:
    """Phones and their ends, of the symbols that a network read and how long each took.

    Stress belongs to the phone after it. Punctuation is a pause, a space only if it lasts; what
    it takes otherwise belongs to the phone before.
    """
    phones: Phones = []
    now = 0.0
    for symbol, length in zip(symbols, seconds, strict=True):
        now += length
        if symbol in STRESS:
            continue
        if symbol not in PUNCTUATION and symbol != PAUSE:
            phones.append((symbol, now))
        elif (symbol == " " and length <= short_pause) and phones:
            phones[-1] = (phones[-1][0], now)
        else:
            phones.append((PAUSE, now))
    return merge_pauses(phones)


def phone_index(phone: str) -> int:
    """Index in PHONES of a phone of a teacher; rare foreign ones count as a schwa."""
    return _INDEX.get(SAME.get(phone, phone), _INDEX[_RARE])


def frame_ends(
    phones: Sequence[tuple[str, float]], num_frames: int, frame_seconds: float
) -> NDArray:
    """[num_phones] frames at which the phones end; every phone has one at least, where they fit.

    Ends that are too near to each other are moved apart, as little as squares of distances allow.

    Args:
        phones: (phone, end in seconds) in order.
        num_frames: the last phone ends there.
        frame_seconds: length of a frame.
    """
    count = len(phones)
    order = np.arange(1, count + 1)
    shifted = isotonic(np.array([end for _, end in phones]) / frame_seconds - order)
    ends = np.round(shifted).astype(np.int64) + order
    # Not past the end, and not so late that the phones after have no place.
    ends = np.minimum(ends, num_frames - (count - order))
    ends = np.maximum(ends, np.minimum(order, num_frames))
    ends[-1] = num_frames
    return np.maximum.accumulate(np.minimum(ends, num_frames))


def isotonic(values: NDArray) -> NDArray[np.float64]:
    """The nondecreasing sequence nearest to values: those that fall share their mean."""
    means: list[float] = []
    sizes: list[int] = []
    for value in values:
        mean, size = float(value), 1
        while means and means[-1] > mean:
            last, number = means.pop(), sizes.pop()
            mean = (mean * size + last * number) / (size + number)
            size += number
        means.append(mean)
        sizes.append(size)
    return np.repeat(means, sizes)


def frame_labels(
    phones: Sequence[tuple[str, float]], num_frames: int, frame_seconds: float
) -> NDArray[np.int64]:
    """[num_frames] labels, in [0, NUM_LABELS), of what is said in each frame.

    Args:
        phones: (phone, end in seconds) in order.
        num_frames: see `frame_ends`.
        frame_seconds: length of a frame.
    """
    ends = frame_ends(phones, num_frames, frame_seconds)
    starts = np.concatenate([[0], ends[:-1]])
    labels = np.zeros(num_frames, np.int64)
    for (phone, _), start, end in zip(phones, starts, ends, strict=True):
        labels[start:end] = 2 * phone_index(phone)
        labels[start + (end - start + 1) // 2 : end] += 1
    return labels
