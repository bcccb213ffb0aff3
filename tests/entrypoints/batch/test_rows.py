# SPDX-License-Identifier: Apache-2.0
"""Rows of a batch: what files hold, and what a row asks for."""

from __future__ import annotations

import base64
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm.entrypoints.speech.batch.requests import (
    RowRules,
    check_defaults,
    read_request,
    row_seed,
)
from vllm.entrypoints.speech.batch.rows import Row, RowsFile
from vllm.entrypoints.speech.encoding import encode_whole
from vllm.unison.frontend.errors import InvalidRequestError

ROWS: list[dict[str, Any]] = [
    {"text": "hello, there", "id": "a", "voice": "slt"},
    {"text": "a line\nand another", "seed": 4, "guidance_scale": 1.5},
    {"text": "7", "temperature": 0.5, "max_tokens": 12},
]
NOISE = encode_whole("wav", np.full(1600, 0.25, np.float32), 16000)


def write(path: Path, rows: list[dict[str, Any]]) -> RowsFile:
    """A file of rows, of the kind that its name says."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".csv":
        with path.open("w", newline="") as file:
            lines = csv.DictWriter(file, names)
            lines.writeheader()
            lines.writerows(rows)
    else:
        table = pyarrow.table({name: [row.get(name) for row in rows] for name in names})
        pyarrow.parquet.write_table(table, path)
    return RowsFile(path)


@pytest.fixture
def rules(tmp_path: Path) -> RowRules:
    return RowRules("speak", tmp_path, {"response_format": "flac"}, "speech")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_equal_rows_of_all_kinds_of_files_are_equal_requests(
    suffix: str, rules: RowRules, tmp_path: Path
) -> None:
    file = write(tmp_path / f"rows{suffix}", ROWS)
    rows = list(file)
    assert [row.index for row in rows] == [0, 1, 2] and file.describe()[0] == 3
    found = [read_request(rules, row) for row in rows]
    assert [r.inputs.text for r in found] == [row["text"] for row in ROWS]
    assert [r.inputs.sampling for r in found] == [
        {},
        {"seed": 4, "guidance_scale": 1.5},
        {"temperature": 0.5, "max_tokens": 12},
    ]
    assert found[0].inputs.voice == "slt" and found[1].inputs.voice is None
    assert {r.audio_format for r in found} == {"flac"}


def test_a_digest_is_of_all_that_is_there(tmp_path: Path) -> None:
    digests = set()
    for number in range(3):
        rows = [{**row, "seed": number} for row in ROWS]
        digests.add(write(tmp_path / "rows.jsonl", rows).describe())
    assert len(digests) == 3


def test_rows_that_cannot_be_read_keep_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(
        b'\n{"text": "a"}\nnothing\n  \n[1]\n{"text": "\xff"}\n{"a": 1, "a": 2}\n{"text": "b"}'
    )
    rows = list(RowsFile(tmp_path / "rows.jsonl"))
    errors = [row.error for row in rows]
    assert [row.index for row in rows] == list(range(6))
    assert errors[0] is None and errors[5] is None
    assert errors[1] is not None and errors[1].startswith("row must be JSON: ")
    assert errors[2] == "row must be a JSON object"
    assert errors[3] == "row must be UTF-8"
    assert errors[4] == "a must be given once"
    (tmp_path / "rows.csv").write_text('text,seed\nhello,1\n\nmore,2,3\n"a, b",\n')
    cells = list(RowsFile(tmp_path / "rows.csv"))
    assert [row.error for row in cells] == [None, "row must have 2 cells, not 3", None]
    assert cells[2].values == {"text": "a, b"}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.txt", b"", "INPUT must be a file of .jsonl"),
        ("rows.csv", b"a,a\n1,2\n", "must have one column of a name"),
        ("rows.csv", b"a\n\xff\n", "must be CSV in UTF-8"),
        ("rows.parquet", b"PAR1", "must be a Parquet file"),
    ],
)
def test_a_file_that_is_none_is_refused(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=words):
        list(RowsFile(tmp_path / name))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "input is required"),
        ({"text": ""}, "text must have at least 1 character"),
        ({"text": "a", "input": "b"}, "text must not be given beside input"),
        ({"text": "a", "temperature": 3}, "temperature must be at most 2, not 3"),
        ({"text": "a", "speed": 2.0}, "speed must be at most 1, not 2.0"),
        ({"text": "a", "colour": "red"}, "colour is no field of this request"),
        ({"text": "a", "model": "other"}, "model must be speech"),
        ({"text": "a", "stream": True}, "stream must be false in a batch, not true"),
        ({"text": "a", "id": 1.5}, "id must be an integer or printable text"),
        ({"text": "a", "id": "\ud800"}, "id must be an integer or printable text"),
        ({"text": "a", "ref_audio_path": "none.wav"}, "ref_audio_path: No such file"),
        (
            {"text": "a", "ref_audio_path": "rows.txt"},
            "ref_audio_path must be a complete",
        ),
        ({"text": "a", "ref_audio": "====", "ref_audio_path": "x"}, "ref_audio_path must not be"),
        ({"text": "a", "ref_text": "b"}, "ref_text must be given beside ref_audio"),
    ],
)
def test_fields_are_refused_as_the_route_refuses_them(
    values: dict[str, Any], message: str, rules: RowRules, tmp_path: Path
) -> None:
    (tmp_path / "rows.txt").write_text("no audio")
    with pytest.raises(InvalidRequestError) as refused:
        read_request(rules, Row(0, values))
    assert str(refused.value).startswith(message)


def test_a_recording_comes_by_its_path_or_as_it_is(rules: RowRules, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(NOISE)
    for more in (
        {"ref_audio_path": "a.wav"},
        {"ref_audio": NOISE},
        {"ref_audio": base64.b64encode(NOISE).decode()},
    ):
        request = read_request(rules, Row(0, {"text": "b", "ref_text": "c", **more}))
        recording = request.inputs.recording
        assert recording is not None and recording.text == "c"
        assert isinstance(recording.audio, tuple) and recording.audio[0].shape == (1, 1600)


def test_transcription_takes_a_folder_or_rows(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("z.wav", "a.flac", "b/c.wav"):
        (tmp_path / name).write_bytes(NOISE)
    (tmp_path / "notes.txt").write_text("not one of them")
    rows = RowsFile(tmp_path)
    assert [row.values["path"] for row in rows] == ["a.flac", "b/c.wav", "z.wav"]
    assert rows.describe()[0] == 3
    rules = RowRules("transcribe", rows.folder, {"max_tokens": 5}, "speech")
    for row in rows:
        request = read_request(rules, row)
        assert request.inputs.clip is not None and request.inputs.clip.seconds == 0.1
        assert request.inputs.sampling == {"max_tokens": 5}
    given_inline = Row(0, {"audio": base64.b64encode(NOISE).decode(), "temperature": "0.5"}, True)
    assert read_request(rules, given_inline).inputs.sampling["temperature"] == 0.5
    for values, message in (
        ({}, "audio must be an audio file"),
        ({"path": "none.wav"}, "path: No such file"),
        ({"audio": b"none"}, "audio must be a complete audio file"),
        ({"path": "z.wav", "top_p": 2}, "top_p must be at most 1, not 2"),
    ):
        with pytest.raises(InvalidRequestError) as refused:
            read_request(rules, Row(0, values))
        assert str(refused.value).startswith(message)


def test_a_field_for_all_rows_is_refused_before_any(tmp_path: Path) -> None:
    for command in ("speak", "transcribe"):
        rules = RowRules(command, tmp_path, {"temperature": 3.0})  # type: ignore[arg-type]
        with pytest.raises(InvalidRequestError, match="temperature must be at most 2"):
            check_defaults(rules)
        check_defaults(RowRules(command, tmp_path, {"temperature": 1.0}))  # type: ignore[arg-type]


@given(seed=st.integers(), index=st.integers(0, 10**9), name=st.text(min_size=1, max_size=9))
def test_a_rows_seed_is_that_of_its_id_or_its_number(seed: int, index: int, name: str) -> None:
    by_number = row_seed(seed, Row(index, {}))
    assert by_number == row_seed(seed, Row(index, {"text": name}))
    assert (
        len({by_number, row_seed(seed, Row(index + 1, {})), row_seed(seed + 1, Row(index, {}))})
        == 3
    )
    if name.isprintable():
        by_name = row_seed(seed, Row(index, {"id": name}))
        assert by_name == row_seed(seed, Row(index + 1, {"id": name})) != by_number
    assert 0 <= by_number < 2**62
