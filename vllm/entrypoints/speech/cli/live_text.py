# SPDX-License-Identifier: Apache-2.0
"""Text from standard input as it comes: from a chat model, a program or a keyboard."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterable, Iterator

from vllm.entrypoints.speech.sentences import SentenceSplitter

_READ_BYTES = 4096


def read_text(descriptor: int) -> Iterator[str]:
    """The text of an open file, in the pieces in which it comes.

    Raises:
        ValueError: if it is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        while data := os.read(descriptor, _READ_BYTES):
            if text := decoder.decode(data):
                yield text
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise ValueError("standard input must be UTF-8") from error


def lines(pieces: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """The pieces cut at line ends, each with whether it ends a line."""
    for piece in pieces:
        *whole, rest = piece.split("\n")
        yield from ((line, True) for line in whole)
        if rest:
            yield rest, False


def sentences(pieces: Iterable[str]) -> Iterator[str]:
    """The sentences of a text, each as soon as it is complete. A line's end is the end of one."""
    splitter = SentenceSplitter()
    for text, ends_line in lines(pieces):
        yield from splitter.push(text)
        if ends_line:
            yield from splitter.finish()
    yield from splitter.finish()
