# SPDX-License-Identifier: Apache-2.0
"""How words are said: a model's own spelling of the words that it knows."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

WORD = "[A-Za-z]+(?:'[A-Za-z]+)*"
"""Pattern of what may have a spelling."""

_PARTS = re.compile(f"{WORD}|[^A-Za-z]+")


class Lexicon:
    """Spellings of words, for a tokenizer that has signs for sounds beside letters.

    A word that is missing keeps its letters, which the model reads too.

    Args:
        spellings: by word, in small letters.
    """

    def __init__(self, spellings: Mapping[str, str]) -> None:
        self._spellings = spellings

    def __len__(self) -> int:
        return len(self._spellings)

    def parts(self, text: str) -> Iterator[tuple[str, str | None]]:
        """The words of a text and what is between them, in order; each with its spelling, if any.

        Args:
            text: words of the letters a to z.
        """
        for match in _PARTS.finditer(text):
            yield match[0], self._spellings.get(match[0].lower())

    def respell(self, text: str) -> str:
        """The text with all known words spelled as they are said."""
        return "".join(written if said is None else said for written, said in self.parts(text))

    @classmethod
    def from_bytes(cls, content: bytes, name: str = "the lexicon") -> Lexicon:
        """Read a gzip file of lines: a word, a tabulator, its spelling.

        Args:
            content: of the file.
            name: of the file, for errors.

        Raises:
            ValueError: naming the line that is something else.
        """
        spellings = {}
        for number, line in enumerate(gzip.decompress(content).decode().splitlines(), 1):
            word, tabulator, spelling = line.partition("\t")
            if not (word and tabulator and spelling):
                raise ValueError(
                    f"{name}, line {number}, must be a word, a tabulator and its spelling"
                )
            spellings[word] = spelling
        return cls(spellings)

    def to_bytes(self) -> bytes:
        """What `from_bytes` reads; the same spellings make the same bytes."""
        lines = "".join(f"{word}\t{said}\n" for word, said in sorted(self._spellings.items()))
        return gzip.compress(lines.encode(), mtime=0)

    @classmethod
    def load(cls, file: Path) -> Lexicon:
        """`from_bytes` of a file."""
        return cls.from_bytes(file.read_bytes(), file.name)

    def save(self, file: Path) -> None:
        """`to_bytes` into a file."""
        file.write_bytes(self.to_bytes())
