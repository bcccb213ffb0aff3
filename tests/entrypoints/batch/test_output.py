# SPDX-License-Identifier: Apache-2.0
"""The folder that a batch writes: the same whenever and however often its run was ended."""

from __future__ import annotations

import errno
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm.entrypoints.speech.batch import output as output_module
from vllm.entrypoints.speech.batch.output import MANIFEST, OutputFolder
from vllm.entrypoints.speech.batch.results import SPOKEN, WRITTEN, Result

NUM_ROWS, PER_SHARD = 7, 3
KINDS = ("files", "webdataset", "parquet")
RUN = {"--seed": 0}


def result(index: int) -> Result:
    """Of a row; number 4 has an error, and every other is a file of its own kind."""
    entry: dict[str, Any] = {"index": index, "id": f"row {index}", **dict.fromkeys(SPOKEN)}
    if index == 4:
        return Result(index, entry | {"error": "text must not be empty"})
    entry |= {"text": "häuser", "seconds": 0.5, "sample_rate": 16000, "channels": 1, "seed": 2**60}
    return Result(index, entry, bytes([index]) * 1000, (".wav", ".flac")[index % 2])


def folder(path: Path, kind: Any = "files", run: Any = RUN) -> OutputFolder:
    return OutputFolder(path, NUM_ROWS, kind, PER_SHARD, run)


def contents(path: Path) -> dict[str, bytes]:
    """All files, by their paths."""
    return {
        file.relative_to(path).as_posix(): file.read_bytes()
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def write_all(path: Path, kind: Any = "files") -> dict[str, bytes]:
    made = folder(path, kind)
    for index in range(NUM_ROWS):
        made.add(result(index))
    made.finish()
    made.close()
    return contents(path)


@pytest.fixture(scope="module")
def complete(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """What a run that nothing ends writes, by kind."""
    return {kind: write_all(tmp_path_factory.mktemp("whole") / kind, kind) for kind in KINDS}


def test_files_lie_where_the_manifest_says(tmp_path: Path) -> None:
    found = write_all(tmp_path / "out")
    entries = [json.loads(line) for line in found[MANIFEST].decode().splitlines()]
    assert [entry["index"] for entry in entries] == list(range(NUM_ROWS))
    assert entries[4]["error"] == "text must not be empty" and entries[4]["path"] is None
    paths = {entry["path"]: entry["index"] for entry in entries if entry["path"]}
    assert set(paths) == {name for name in found if name.startswith("audio/")}
    assert all(found[path] == result(index).data for path, index in paths.items())
    assert "audio/00002/000000006.wav" in paths
    assert entries[0]["text"] == "häuser" and "häuser".encode() in found[MANIFEST]
    assert {name for name in found if name.startswith(".batch/")} == {
        ".batch/run.json",
        ".batch/lock",
    }


def test_shards_of_webdataset_hold_files_and_entries(tmp_path: Path) -> None:
    write_all(tmp_path / "out", "webdataset")
    with tarfile.open(tmp_path / "out" / "shards" / "00001.tar") as tar:
        names = tar.getnames()
        audio = tar.extractfile("000000005.flac")
        entry = tar.extractfile("000000005.json")
        assert audio is not None and audio.read() == result(5).data
        assert entry is not None and json.load(entry)["path"] == "shards/00001.tar"
    assert names == ["000000003.flac", "000000003.json", "000000005.flac", "000000005.json"]


def test_shards_of_parquet_hold_columns(tmp_path: Path) -> None:
    write_all(tmp_path / "out", "parquet")
    table = pyarrow.parquet.read_table(tmp_path / "out" / "shards" / "00001.parquet")
    assert table.column_names == ["index", "id", *SPOKEN, "audio"]
    assert table["index"].to_pylist() == [3, 5]
    assert table["audio"].to_pylist() == [result(3).data, result(5).data]
    assert table["seed"].to_pylist() == [2**60] * 2
    written = tmp_path / "written"
    made = OutputFolder(written, 1, "parquet", 1, RUN)
    values = {"text": "hello", "seconds": 1.0}
    made.add(Result(0, {"index": 0, "id": 3, **dict.fromkeys(WRITTEN), **values}))
    made.finish()
    made.close()
    table = pyarrow.parquet.read_table(written / "shards" / "00000.parquet")
    assert table["text"].to_pylist() == ["hello"] and table["id"].to_pylist() == ["3"]


class Ended(Exception):
    """Stands for the end of a process."""


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """[calls left until one fails, with what]; of what a file's way to the disk consists of."""
    state: list[Any] = [10**9, Ended()]

    def counted(function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            state[0] -= 1
            if state[0] == 0:
                raise state[1]
            return function(*args, **options)

        return call

    monkeypatch.setattr(output_module.os, "fsync", counted(lambda descriptor: None))
    monkeypatch.setattr(Path, "replace", counted(Path.replace))
    monkeypatch.setattr(Path, "mkdir", counted(Path.mkdir))
    monkeypatch.setattr(output_module.shutil, "rmtree", counted(output_module.shutil.rmtree))
    yield state
    state[0] = 10**9


@settings(max_examples=25)
@given(
    kind=st.sampled_from(KINDS),
    order=st.permutations(range(NUM_ROWS)),
    ends=st.lists(st.integers(1, 60), max_size=6),
)
def test_a_run_that_is_ended_anywhere_is_taken_up_again(
    kind: Any,
    order: list[int],
    ends: list[int],
    failing: list[Any],
    complete: dict[str, dict[str, bytes]],
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("ended") / "out"
    done = 0
    for end in [*ends, 10**9]:
        failing[:] = [end, Ended()]
        made: OutputFolder | None = None
        try:
            made = folder(path, kind)
            assert made.num_done >= done
            left = [index for index in order if not made.is_done(index)]
            assert len(left) == NUM_ROWS - made.num_done
            for index in left:
                made.add(result(index))
                done = max(done, made.num_done)
            made.finish()
        except Ended:
            continue
        finally:
            if made is not None:
                made.close()
    assert contents(path) == complete[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_full_disk_is_said_and_leaves_nothing_torn(
    kind: Any, failing: list[Any], complete: dict[str, dict[str, bytes]], tmp_path: Path
) -> None:
    made = folder(tmp_path / "out", kind)
    failing[:] = [6, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))]
    with pytest.raises(RuntimeError, match="No space left on device; what is done so far is kept"):
        for index in range(NUM_ROWS):
            made.add(result(index))
    made.close()
    found = contents(tmp_path / "out")
    assert not [name for name in found if name.endswith(".partial")]
    whole = {result(index).data for index in range(NUM_ROWS)}
    assert {data for name, data in found.items() if name.endswith((".wav", ".flac"))} <= whole
    assert write_all(tmp_path / "out", kind) == complete[kind]


def test_a_row_that_comes_twice_counts_once(tmp_path: Path) -> None:
    made = folder(tmp_path / "out")
    for index in (0, 1, 0, 2, 1):
        made.add(result(index))
    assert (made.num_done, made.seconds) == (3, 1.5)
    with pytest.raises(RuntimeError, match="4 of 7 rows are not done"):
        made.finish()
    made.close()


def test_another_batch_is_refused(tmp_path: Path) -> None:
    write_all(tmp_path / "out")
    with pytest.raises(ValueError, match="holds a batch with --seed 0, not 1"):
        folder(tmp_path / "out", run={"--seed": 1})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(ValueError, match="must be new, empty or the output of this batch"):
        folder(tmp_path / "mine")
    with pytest.raises(ValueError, match="must be a folder, not the file"):
        folder(tmp_path / "mine" / "thesis.txt")
    first = folder(tmp_path / "new")
    with pytest.raises(RuntimeError, match="is being written by another run"):
        folder(tmp_path / "new")
    first.close()
    folder(tmp_path / "new").close()
