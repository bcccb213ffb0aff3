# SPDX-License-Identifier: Apache-2.0
"""Sentences of a text that comes in pieces, each as soon as it is complete."""

from __future__ import annotations

from collections.abc import Iterator

from sentence_stream import SentenceBoundaryDetector

_PIECE = 256
"""Characters that are searched for ends of sentences at once, whatever the length of a text."""


class SentenceSplitter:
    """Splits at the ends of sentences and at blank lines.

    An end is known with the beginning of the next sentence. Asterisks that mark words, as chat
    models write them, are taken away.

    Args:
        max_sentence: characters of a sentence after which it is not waited for its end; None: it
            may have any number.
    """

    def __init__(self, max_sentence: int | None = None) -> None:
        self._max_sentence = max_sentence
        self._detector = SentenceBoundaryDetector()

    @property
    def num_waiting(self) -> int:
        """Characters of the sentence that is not complete."""
        return len(self._detector.current_sentence) + len(self._detector.remaining_text)

    def push(self, text: str) -> Iterator[str]:
        """The sentences that are complete with `text`."""
        for begin in range(0, len(text), _PIECE):
            yield from self._detector.add_chunk(text[begin : begin + _PIECE])
            if self._max_sentence is not None and self.num_waiting > self._max_sentence:
                yield from self.finish()

    def finish(self) -> Iterator[str]:
        """What is left, if that is more than spaces. Another text may follow."""
        if rest := self._detector.finish():
            yield rest


class NoSplitter:
    """Takes the place of a `SentenceSplitter` for a text that is to be spoken as a whole.

    Args:
        max_sentence: characters after which the end of the text is not waited for.
    """

    def __init__(self, max_sentence: int) -> None:
        self._max_sentence = max_sentence
        self._pieces: list[str] = []
        self.num_waiting = 0

    def push(self, text: str) -> Iterator[str]:
        """Nothing, unless the text has become too long."""
        self._pieces.append(text)
        self.num_waiting += len(text)
        if self.num_waiting > self._max_sentence:
            yield from self.finish()

    def finish(self) -> Iterator[str]:
        """The text, if it is more than spaces. Another one may follow."""
        text = "".join(self._pieces).strip()
        self._pieces, self.num_waiting = [], 0
        if text:
            yield text
