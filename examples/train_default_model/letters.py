# SPDX-License-Identifier: Apache-2.0
"""Which letter is said when: phones and letters of a sentence are aligned.

Nobody tells us which letters a phone stands for. It is learned from the sentences themselves: the
cheapest way to turn phones into letters is counted, costs become the negative logarithms of the
counts, and again. Nothing but a hint during training depends on it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
from numpy.typing import NDArray
from phones import PHONES, phone_index

LETTERS = "abcdefghijklmnopqrstuvwxyz ,.?!;:'-"
_ROUNDS = 6
_INDEX = {letter: index for index, letter in enumerate(LETTERS)}
_SPACE = _INDEX[" "]


def letter_indices(text: str) -> NDArray[np.int64]:
    """Index in LETTERS of each character, capitals as small ones."""
    return np.array([_INDEX.get(letter, _SPACE) for letter in text.lower()], np.int64)


@numba.njit
def _path(
    phones: NDArray, letters: NDArray, both: NDArray, silent: NDArray, unwritten: NDArray
) -> NDArray:
    """Cheapest monotonic path: per letter its phone, or -1 - phone where it is silent after it."""
    rows, columns = len(phones), len(letters)
    cost = np.full((rows + 1, columns + 1), np.inf)
    move = np.zeros((rows + 1, columns + 1), np.int8)
    cost[0, 0] = 0
    for i in range(rows + 1):
        for j in range(columns + 1):
            if i and j:
                new = cost[i - 1, j - 1] + both[phones[i - 1], letters[j - 1]]
                if new < cost[i, j]:
                    cost[i, j], move[i, j] = new, 0
            if j:
                new = cost[i, j - 1] + silent[letters[j - 1]]
                if new < cost[i, j]:
                    cost[i, j], move[i, j] = new, 1
            if i:
                new = cost[i - 1, j] + unwritten[phones[i - 1]]
                if new < cost[i, j]:
                    cost[i, j], move[i, j] = new, 2
    owner = np.zeros(columns, np.int64)
    i, j = rows, columns
    while i or j:
        if move[i, j] == 0:
            i, j = i - 1, j - 1
            owner[j] = i
        elif move[i, j] == 1:
            j -= 1
            owner[j] = -1 - i
        else:
            i -= 1
    return owner


class LetterAligner:
    """Aligns phones with letters.

    Args:
        examples: (phones, text) to learn from; some thousands are enough.
    """

    def __init__(self, examples: Sequence[tuple[Sequence[str], str]]) -> None:
        pairs = [(self._phones(phones), letter_indices(text)) for phones, text in examples]
        shape = (len(PHONES), len(LETTERS))
        self._costs: tuple[NDArray, ...] = (
            np.full(shape, 1.0),
            np.full(shape[1], 1.2),
            np.full(shape[0], 2.0),
        )
        # To begin with, a phone whose sign is a letter is that letter.
        for index, phone in enumerate(PHONES):
            if phone.lower() in _INDEX:
                self._costs[0][index, _INDEX[phone.lower()]] = 0.1
        for _ in range(_ROUNDS):
            self._costs = self._counted(pairs)

    @staticmethod
    def _phones(phones: Sequence[str]) -> NDArray[np.int64]:
        return np.array([phone_index(phone) for phone in phones], np.int64)

    def _counted(self, pairs: Sequence[tuple[NDArray, NDArray]]) -> tuple[NDArray, ...]:
        both = np.full((len(PHONES), len(LETTERS)), 0.1)
        silent, unwritten = np.full(len(LETTERS), 0.1), np.full(len(PHONES), 0.1)
        for phones, letters in pairs:
            owner = _path(phones, letters, *self._costs)
            said = owner >= 0
            np.add.at(both, (phones[owner[said]], letters[said]), 1)
            np.add.at(silent, letters[~said], 1)
            missing = np.setdiff1d(np.arange(len(phones)), owner[said])
            np.add.at(unwritten, phones[missing], 1)
        total = both.sum() + silent.sum() + unwritten.sum()
        return -np.log(both / total), -np.log(silent / total), -np.log(unwritten / total)

    def align(self, phones: Sequence[str], text: str) -> NDArray[np.float32]:
        """[num_phones] where in the text each phone is: the mean place of its letters.

        A phone without letters of its own has the place between those of its neighbours.
        """
        indices = self._phones(phones)
        owner = _path(indices, letter_indices(text), *self._costs)
        said = np.flatnonzero(owner >= 0)
        count = np.bincount(owner[said], minlength=len(phones))
        total = np.bincount(owner[said], said, minlength=len(phones))
        known = np.flatnonzero(count)
        if not len(known):
            return np.linspace(0, len(text) - 1, len(phones)).astype(np.float32)
        places = np.interp(np.arange(len(phones)), known, total[known] / count[known])
        return places.astype(np.float32)
