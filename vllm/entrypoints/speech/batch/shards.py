# SPDX-License-Identifier: Apache-2.0
"""Shards: many rows in one file. Equal rows make equal files: nothing in them is of today."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from vllm.entrypoints.speech.batch.needed import pyarrow_parquet


@dataclass(frozen=True)
class Member:
    """A row of a shard.

    Attributes:
        name: of its files in the shard, without what says their kind.
        entry: of the manifest.
        audio: its audio file, if it has one.
        suffix: of that file's name.
    """

    name: str
    entry: dict[str, Any]
    audio: Path | None
    suffix: str = ""


def write_tar(members: Sequence[Member], file: IO[bytes]) -> None:
    """A shard of WebDataset: of each row its audio, and its entry as `.json`."""
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for member in members:
            assert member.audio is not None
            files = {
                member.suffix: member.audio.read_bytes(),
                ".json": json.dumps(member.entry, ensure_ascii=False).encode(),
            }
            for suffix, data in files.items():
                info = tarfile.TarInfo(member.name + suffix)
                info.size, info.mode = len(data), 0o644
                tar.addfile(info, io.BytesIO(data))


_TYPES = {
    "index": "int64",
    "seconds": "float64",
    "sample_rate": "int32",
    "channels": "int32",
    "seed": "int64",
}
"""Of columns that are not text."""


def write_parquet(members: Sequence[Member], file: IO[bytes]) -> None:
    """A shard of Parquet: a column for each field of the entries, and `audio`, if there is any."""
    parquet = pyarrow_parquet()
    import pyarrow

    columns: dict[str, Any] = {}
    for name in members[0].entry:
        values = [member.entry[name] for member in members]
        if name == "id":
            values = [None if value is None else str(value) for value in values]
        kind = pyarrow.type_for_alias(_TYPES.get(name, "string"))
        columns[name] = pyarrow.array(values, kind)
    if any(member.audio is not None for member in members):
        audio = [None if m.audio is None else m.audio.read_bytes() for m in members]
        columns["audio"] = pyarrow.array(audio, pyarrow.large_binary())
    parquet.write_table(pyarrow.table(columns), file, row_group_size=64)
