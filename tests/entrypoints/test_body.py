# SPDX-License-Identifier: Apache-2.0
"""JSON that comes in pieces: the same value as from the whole, and limits that hold on the way."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest

from vllm.entrypoints.speech.server.body import (
    LONG_STRING,
    MAX_DEPTH,
    MAX_LONG_STRINGS,
    TEXT_BYTES,
    BodyError,
    BodyLimits,
    JsonReader,
    repeated,
)

TEXT = BodyLimits()
AUDIO = BodyLimits(40 * 2**20)


def read(body: bytes, limits: BodyLimits = AUDIO, piece: int = 2**16) -> Any:
    reader = JsonReader(limits)
    for begin in range(0, len(body), piece):
        reader.feed(body[begin : begin + piece])
    return reader.value()


LONG = "Qx/+=" * (LONG_STRING // 5 + 1)
VALUES = [
    {},
    [],
    "text",
    1.5,
    {"input": 'a "quoted" \\ back\\\\slash \\" ü \n \t 🐘', "list": [1, [2, {"x": None}], True]},
    {"data": LONG, "more": [LONG + "a", {"b": LONG + "b"}], LONG + "c": "short"},
    {"data": "abc\r\n" * LONG_STRING},
    {"\\": "\\", "a\\\\": "\\\\", "edge": "x" * LONG_STRING, "over": "x" * (LONG_STRING + 1)},
]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("piece", [1, 4096, 2**30])
def test_the_value_is_that_of_the_whole_however_it_is_cut(value: Any, piece: int) -> None:
    texts = [json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)]
    # As PHP writes it.
    texts.append(texts[0].replace("/", "\\/"))
    for text in texts:
        assert read(text.encode(), AUDIO, piece) == value


def test_cuts_at_random_change_nothing() -> None:
    choose = random.Random(5)
    alphabet = ['"', "\\", "/", "\n", "a", "ü", "[", "{", ":", ","]
    for _ in range(300):
        value = {
            "".join(choose.choices(alphabet, k=6)): "".join(choose.choices(alphabet, k=20))
            for _ in range(4)
        }
        assert read(json.dumps(value).encode(), AUDIO, choose.randint(1, 9)) == value


MILLION = 10**6
HOSTILE = {
    "unknown keys": b"{" + b",".join(b'"x%d":0' % i for i in range(MILLION)) + b"}",
    "nested lists": b"[" * MILLION,
    "nested objects": b'{"a":' * MILLION,
    "numbers": b"[" + b"0," * MILLION + b"0]",
    "empty strings": b'""' * MILLION,
    "a giant number": b'{"seed":' + b"9" * MILLION + b"}",
    "spaces": b" " * MILLION,
    "a long key": b'{"' + "ü".encode() * MILLION + b'":0}',
    "escapes": b'{"input":"' + b"\\u0041" * MILLION + b'"}',
    "quotes": b'{"input":"' + b'\\"' * MILLION + b'"}',
    "backslashes": b'{"input":"' + b"\\" * MILLION + b'"}',
    "many strings": b"[" + b",".join([b'"' + b"a" * 60_000 + b'"'] * 20) + b"]",
    "many files": b"[" + b",".join([b'"' + b"a" * 70_000 + b'"'] * 65) + b"]",
    "no UTF-8": b"\xff" * MILLION,
}


@pytest.mark.parametrize("limits", [TEXT, AUDIO], ids=["text", "audio"])
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_bodies_are_refused_where_the_limit_is(name: str, limits: BodyLimits) -> None:
    body, reader, taken = HOSTILE[name], JsonReader(limits), 0
    with pytest.raises(BodyError) as caught:
        for begin in range(0, len(body), 1000):
            taken = begin
            reader.feed(body[begin : begin + 1000])
        reader.value()
    assert caught.value.status in (400, 413) and len(caught.value.message) < 200
    files = (MAX_LONG_STRINGS + 1) * 70_100 if name == "many files" and limits is AUDIO else 0
    assert taken <= max(files, TEXT_BYTES), "read on beyond the limit"


def test_limits_are_met_exactly() -> None:
    values = BodyLimits(num_values=10)
    assert len(read(b"[" + b"0," * 9 + b"0]", values)) == 10
    with pytest.raises(BodyError, match="at most 10 JSON values"):
        read(b"[" + b"0," * 10 + b"0]", values)
    assert read(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH)
    with pytest.raises(BodyError, match=f"at most {MAX_DEPTH} deep"):
        read(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))
    assert len(read(b'"' + b"a" * (TEXT_BYTES - 2) + b'"', TEXT)) == TEXT_BYTES - 2
    with pytest.raises(BodyError, match="besides its audio") as caught:
        read(b'"' + b"a" * (TEXT_BYTES - 2) + b'" ', TEXT)
    assert caught.value.status == 413
    assert len(read(json.dumps([LONG] * MAX_LONG_STRINGS).encode())) == MAX_LONG_STRINGS
    with pytest.raises(BodyError, match=f"at most {MAX_LONG_STRINGS} files"):
        read(json.dumps([LONG] * (MAX_LONG_STRINGS + 1)).encode())


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"a": 1', "body must be JSON"),
        (b'{"a": 1}}', "body must be JSON"),
        (b'{"a', "body must be JSON"),
        (b'{"a": 0x10}', "body must be JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "body must be JSON"),
        (b'{"a": "\xff"}', "body must be UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "body must be UTF-8"),
        (b'{"a": 1, "b": 2, "a": 1}', "a must be given once"),
        (b'{"b": [{"a": 1, "a": 2}]}', "a must be given once"),
        (b'{"a": "' + b"\\u0041" * 20_000 + b'"}', "must be base64"),
        (b'{"a": "' + b"a" * LONG_STRING + b'\\""}', "must be base64"),
        (b'{"a": "' + "ü".encode() * LONG_STRING + b'"}', "must be base64"),
    ],
)
def test_what_is_no_json_is_refused_by_its_reason(body: bytes, message: str) -> None:
    with pytest.raises(BodyError, match=message) as caught:
        read(body)
    assert caught.value.status == 400


def test_a_key_that_is_given_twice_is_named() -> None:
    with pytest.raises(BodyError) as caught:
        read(b'{"voice": "a", "input": "b", "voice": "c"}')
    assert caught.value.param == "voice"
    with pytest.raises(BodyError) as caught:
        read(json.dumps({"x" * 5000: 1}).encode()[:-1] + b', "' + b"x" * 5000 + b'": 2}')
    assert len(caught.value.message) < 100


def test_a_form_s_field_comes_once_and_a_list_s_more_often() -> None:
    assert repeated(["file", "model", "include[]", "include[]"]) is None
    assert repeated(["file", "model", "file"]) == "file"
