# SPDX-License-Identifier: Apache-2.0
"""The rows of a batch: lines of JSON, CSV or Parquet, or the audio files of a folder.

Rows are read as they are needed. One that cannot be read is a row all the same, with its error, so
that the rows after it keep their numbers.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vllm.entrypoints.speech.server.body import TEXT_BYTES, BodyError, BodyLimits, JsonReader
from vllm.entrypoints.speech.voice_folder import RECORDINGS

JSON_LINES, CSV, PARQUET = (".jsonl", ".ndjson"), (".csv",), (".parquet",)
SUFFIXES = (*JSON_LINES, *CSV, *PARQUET)
_LIMITS = BodyLimits(num_bytes=TEXT_BYTES + 1)  # above it, strings may be files in base64
_MAX_CELL = 2**30
"""Characters of a cell of CSV: it may be a file in base64."""
_PARQUET_ROWS = 64
"""Rows that are read from a Parquet file at once; each may hold a file."""


@dataclass(frozen=True)
class Row:
    """One row.

    Attributes:
        index: its number, from 0 on.
        values: its fields, by name.
        is_text: whether all values are text, as in CSV, whatever the fields are.
        error: why it cannot be read.
    """

    index: int
    values: dict[str, Any]
    is_text: bool = False
    error: str | None = None


class RowsFile:
    """Where the rows of a batch come from.

    Args:
        path: a file with a name of SUFFIXES, or a folder of audio files, whose rows have the one
            field `path`.

    Attributes:
        path: the same.
        folder: to which paths in rows are relative.

    Raises:
        ValueError: if it is neither.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = path if path.is_dir() else path.parent
        self._suffix = path.suffix.lower()
        if not path.is_dir() and self._suffix not in SUFFIXES:
            names = ", ".join(SUFFIXES)
            raise ValueError(f"INPUT must be a file of {names} or a folder, not {path}")

    def __iter__(self) -> Iterator[Row]:
        if self.path.is_dir():
            for index, name in enumerate(self._names()):
                yield Row(index, {"path": name})
        elif self._suffix in JSON_LINES:
            yield from _json_rows(self.path)
        elif self._suffix in CSV:
            yield from _csv_rows(self.path)
        else:
            yield from _parquet_rows(self.path)

    def describe(self) -> tuple[int, str]:
        """The number of rows, and a digest of all that they say."""
        digest = hashlib.sha256()
        if self.path.is_dir():
            names = self._names()
            for name in names:
                digest.update(f"{name}\0{(self.path / name).stat().st_size}\n".encode())
            return len(names), digest.hexdigest()
        with self.path.open("rb") as file:
            while piece := file.read(2**20):
                digest.update(piece)
        return self._count(), digest.hexdigest()

    def _count(self) -> int:
        if self._suffix in PARQUET:
            return int(_parquet(self.path).metadata.num_rows)
        if self._suffix in JSON_LINES:
            with self.path.open("rb") as file:
                return sum(1 for line in file if line.strip())
        return sum(1 for _ in self)

    def _names(self) -> list[str]:
        """Audio files of the folder and of those in it, in an order that no file system chooses."""
        found = (
            path.relative_to(self.path)
            for path in self.path.rglob("*")
            if path.suffix.lower() in RECORDINGS and path.is_file()
        )
        return sorted(path.as_posix() for path in found)


def _json_rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        index = 0
        for line in file:
            if not line.strip():
                continue
            yield _json_row(index, line.strip())
            index += 1


def _json_row(index: int, line: bytes) -> Row:
    try:
        reader = JsonReader(_LIMITS)
        reader.feed(line)
        values = reader.value()
    except BodyError as error:
        return Row(index, {}, error=error.message.replace("body", "row", 1))
    if not isinstance(values, dict):
        return Row(index, {}, error="row must be a JSON object")
    return Row(index, values)


def _csv_rows(path: Path) -> Iterator[Row]:
    csv.field_size_limit(_MAX_CELL)
    with path.open(encoding="utf-8-sig", newline="") as file:
        lines = csv.reader(file, strict=True)
        try:
            names = next(lines, [])
            if len(set(names)) < len(names):
                raise ValueError(f"INPUT {path} must have one column of a name, not {names}")
            cells = (line for line in lines if line)  # blank lines are no rows
            for index, line in enumerate(cells):
                if len(line) != len(names):
                    error = f"row must have {len(names)} cells, not {len(line)}"
                    yield Row(index, {}, error=error)
                    continue
                values = {name: cell for name, cell in zip(names, line, strict=True) if cell}
                yield Row(index, values, is_text=True)
        except (csv.Error, UnicodeDecodeError) as error:
            where = f"INPUT {path}, near line {lines.line_num + 1}"
            raise ValueError(f"{where}, must be CSV in UTF-8: {error}") from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    index = 0
    for batch in _parquet(path).iter_batches(batch_size=_PARQUET_ROWS):
        for values in batch.to_pylist():
            yield Row(index, {name: value for name, value in values.items() if value is not None})
            index += 1


def _parquet(path: Path) -> Any:
    from vllm.entrypoints.speech.batch.needed import pyarrow_parquet

    parquet = pyarrow_parquet()
    try:
        return parquet.ParquetFile(path)
    except ValueError as error:  # as pyarrow's own errors are
        raise ValueError(f"INPUT {path} must be a Parquet file: {error}") from error
