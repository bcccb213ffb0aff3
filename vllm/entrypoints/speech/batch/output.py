# SPDX-License-Identifier: Apache-2.0
"""The folder that a batch writes, so that a run that ends anywhere can be taken up again.

    manifest.jsonl              a line for each row, in their order; there when all is done
    audio/00000/000000012.wav   or shards/00000.tar, or shards/00000.parquet
    .batch/run.json             which batch this is
    .batch/rows/00000/          rows of a shard that is not complete: each one's file, and its entry
    .batch/manifest/00000.jsonl entries of a shard that is complete

Every file is written under another name, and renamed when it is whole. A row is done when its entry
is there, a shard when its part of the manifest is. Which rows are in a shard, and in which order,
follows from their numbers alone: what the folder holds in the end does not depend on when a run was
ended and begun again.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

from vllm.entrypoints.speech.batch.results import Result
from vllm.entrypoints.speech.batch.shards import Member, write_parquet, write_tar

Kind = Literal["files", "webdataset", "parquet"]
ROWS_PER_SHARD = 256
MANIFEST = "manifest.jsonl"
_WORK = ".batch"
_SHARDS: Mapping[str, Any] = {
    "webdataset": (".tar", write_tar),
    "parquet": (".parquet", write_parquet),
}


class OutputFolder:
    """The output of a batch, which only one process writes at a time; close it at the end.

    Args:
        folder: made if missing.
        num_rows: of the batch.
        kind: how audio is kept.
        rows_per_shard: rows that are committed at once.
        run: what the outputs depend on, by the name of the option that says it.

    Attributes:
        num_done: rows that are done.
        seconds: of audio of the rows that were added here.
        num_failed: rows that were added here, and have an error.

    Raises:
        ValueError: if the folder holds something else, or the output of another batch.
        RuntimeError: if it cannot be written, or another process writes it.
    """

    def __init__(
        self, folder: Path, num_rows: int, kind: Kind, rows_per_shard: int, run: Mapping[str, Any]
    ) -> None:
        self.folder, self._work = folder, folder / _WORK
        self._num_rows, self._kind, self._per_shard = num_rows, kind, rows_per_shard
        self.seconds, self.num_failed = 0.0, 0
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"OUTPUT must be a folder, not the file {folder}")
        if folder.is_dir() and not self._work.is_dir() and any(folder.iterdir()):
            raise ValueError(f"OUTPUT {folder} must be new, empty or the output of this batch")
        self._make_folder(self._work)
        self._lock = self._locked()
        try:
            self._check_run(run)
            self._done = self._find_done()
        except BaseException:
            self._lock.close()
            raise

    @property
    def num_done(self) -> int:
        """Rows that are done."""
        return self._num_rows if self.is_complete else sum(map(len, self._done.values()))

    @property
    def is_complete(self) -> bool:
        """Whether all is done."""
        return (self.folder / MANIFEST).exists()

    def is_done(self, index: int) -> bool:
        """Whether a row is done."""
        return self.is_complete or index in self._done[index // self._per_shard]

    def add(self, result: Result) -> None:
        """Keep a row's result, and commit its shard if it was the last one of it.

        Raises:
            RuntimeError: if it cannot be written; what was written before stays.
        """
        shard = result.index // self._per_shard
        if result.index in self._done[shard]:
            return  # by an engine that began it again
        rows = self._work / "rows" / _shard_name(shard)
        self._make_folder(rows)
        entry = {"entry": result.entry, "suffix": result.suffix}
        name = _row_name(result.index)
        if result.suffix:
            self._write(rows / (name + result.suffix), result.data)
        self._write(rows / f"{name}.json", json.dumps(entry).encode())
        self._done[shard].add(result.index)
        self.seconds += result.entry.get("seconds") or 0.0
        self.num_failed += result.entry["error"] is not None
        if len(self._done[shard]) == self._size(shard):
            self._commit(shard)

    def finish(self) -> None:
        """Write the manifest, once all rows are done.

        Raises:
            RuntimeError: if rows are missing, or it cannot be written.
        """
        missing = self._num_rows - self.num_done
        if missing:
            raise RuntimeError(
                f"{missing} of {self._num_rows} rows are not done; run the same command again"
            )
        if not self.is_complete:
            with self._whole(self.folder / MANIFEST) as file:
                for shard in range(self._num_shards):
                    file.write(self._part(shard).read_bytes())
        for left in ("rows", "manifest"):
            shutil.rmtree(self._work / left, ignore_errors=True)

    def close(self) -> None:
        """Let another process write the folder."""
        self._lock.close()

    @property
    def _num_shards(self) -> int:
        return -(-self._num_rows // self._per_shard)

    def _size(self, shard: int) -> int:
        return min(self._per_shard, self._num_rows - shard * self._per_shard)

    def _part(self, shard: int) -> Path:
        return self._work / "manifest" / f"{_shard_name(shard)}.jsonl"

    def _commit(self, shard: int) -> None:
        """Put a shard's files where they belong, and then its entries."""
        rows = self._work / "rows" / _shard_name(shard)
        members = []
        for path in sorted(rows.glob("*.json")):
            kept = json.loads(path.read_bytes())
            suffix = kept["suffix"]
            audio = path.with_suffix(suffix) if suffix else None
            members.append(Member(path.stem, kept["entry"], audio, suffix))
        made = [member for member in members if member.entry["error"] is None]
        if self._kind == "files":
            self._place_files(shard, made)
        elif made:
            suffix, write = _SHARDS[self._kind]
            path = self.folder / "shards" / (_shard_name(shard) + suffix)
            for member in made:
                if "path" in member.entry:
                    member.entry["path"] = path.relative_to(self.folder).as_posix()
            self._make_folder(path.parent)
            with self._whole(path) as file:
                write(made, file)
        lines = [json.dumps(member.entry, ensure_ascii=False) + "\n" for member in members]
        self._make_folder(self._part(shard).parent)
        self._write(self._part(shard), "".join(lines).encode())
        shutil.rmtree(rows)

    def _place_files(self, shard: int, members: list[Member]) -> None:
        folder = self.folder / "audio" / _shard_name(shard)
        for member in members:
            if member.audio is None:
                continue
            self._make_folder(folder)
            path = folder / member.audio.name
            member.entry["path"] = path.relative_to(self.folder).as_posix()
            # A run that ended in the middle of this has placed some of them.
            if member.audio.exists():
                member.audio.replace(path)
        if folder.is_dir():
            _sync_folder(folder)

    def _find_done(self) -> dict[int, set[int]]:
        """Numbers of the rows that are done, by shard."""
        done: dict[int, set[int]] = {}
        for shard in range(self._num_shards if not self.is_complete else 0):
            rows = self._work / "rows" / _shard_name(shard)
            if self._part(shard).exists():
                begin = shard * self._per_shard
                done[shard] = set(range(begin, begin + self._size(shard)))
                if rows.is_dir():
                    shutil.rmtree(rows)
                continue
            done[shard] = {int(path.stem) for path in rows.glob("*.json")}
            if len(done[shard]) == self._size(shard):
                self._commit(shard)
        return done

    def _check_run(self, run: Mapping[str, Any]) -> None:
        path = self._work / "run.json"
        text = json.dumps(dict(run), indent=1, sort_keys=True)
        if not path.exists():
            self._write(path, text.encode())
            return
        kept = json.loads(path.read_bytes())
        for name, value in json.loads(text).items():
            if kept.get(name) != value:
                raise ValueError(
                    f"OUTPUT {self.folder} holds a batch with {name} {kept.get(name)!r}, not "
                    f"{value!r}: choose another folder, or run that one again"
                )

    def _locked(self) -> IO[bytes]:
        file = (self._work / "lock").open("wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise RuntimeError(f"OUTPUT {self.folder} is being written by another run") from error
        return file

    def _write(self, path: Path, data: bytes) -> None:
        with self._whole(path) as file:
            file.write(data)

    @contextlib.contextmanager
    def _whole(self, path: Path) -> Iterator[IO[bytes]]:
        """A file that is there as a whole when the context ends well, and else is not."""
        partial = path.with_name(f".{path.name}.partial")
        try:
            with partial.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            partial.replace(path)
            _sync_folder(path.parent)
        except OSError as error:
            raise self._unwritten(path, error) from error
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)

    def _make_folder(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unwritten(folder, error) from error

    def _unwritten(self, path: Path, error: OSError) -> RuntimeError:
        return RuntimeError(
            f"OUTPUT {path} cannot be written: {error.strerror or error}; what is done so far is "
            "kept, and the same command goes on from there"
        )


def _shard_name(shard: int) -> str:
    return f"{shard:05}"


def _row_name(index: int) -> str:
    return f"{index:09}"


def _sync_folder(folder: Path) -> None:
    """Let a rename outlive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
