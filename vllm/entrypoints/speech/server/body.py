# SPDX-License-Identifier: Apache-2.0
"""Bodies of requests, read within limits: bytes, JSON values, depth.

What reads JSON as a whole, and what checks it against a schema, works without a pause for all
other requests, and for as long as the client likes: a body is looked at piece by piece while it
comes, and nothing is built of one that breaks a limit.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

KiB = 2**10
TEXT_BYTES = 256 * KiB
"""Most bytes of a body without audio, and of what surrounds the audio in one that has some."""
MAX_VALUES = 1024
MAX_DEPTH = 32
MAX_LONG_STRINGS = 64
LONG_STRING = 64 * KiB
"""A longer string can only be a file in base64."""

_LINE_ENDS = ((rb"\/", b"/"), (rb"\n", b"\n"), (rb"\r", b"\r"))


class BodyError(Exception):
    """A body that is refused.

    Attributes:
        message: what is accepted.
        status: of HTTP.
        param: the field, if one is to blame.
    """

    def __init__(self, message: str, status: int = 400, param: str | None = None) -> None:
        super().__init__(message)
        self.message, self.status, self.param = message, status, param


@dataclass(frozen=True)
class BodyLimits:
    """What a route takes: the largest number of bytes of a body, and of values of one in JSON."""

    num_bytes: int = TEXT_BYTES
    num_values: int = MAX_VALUES

    def too_large(self) -> BodyError:
        """The error for a body of more bytes."""
        return BodyError(f"body must have at most {self.num_bytes} bytes", 413)


def is_json(content_type: str | None) -> bool:
    """Whether a header announces JSON."""
    media_type = (content_type or "").partition(";")[0].strip().lower()
    main, _, sub = media_type.partition("/")
    return main == "application" and (sub == "json" or sub.endswith("+json"))


class JsonReader:
    """Reads JSON that comes in pieces.

    Long strings are set aside, so that what is left to parse is short whatever the body's length.
    """

    def __init__(self, limits: BodyLimits) -> None:
        self._limits = limits
        self._long_string = LONG_STRING if limits.num_bytes > TEXT_BYTES else TEXT_BYTES
        self._token = secrets.token_hex(8)
        self._rest = bytearray()
        self._long: list[list[str]] = []
        self._in_string = False
        self._is_long = False
        self._string_begin = 0
        self._escape = b""
        self._values = self._strings = self._depth = 0

    def feed(self, piece: bytes) -> None:
        """Take the next bytes.

        Raises:
            BodyError: if a limit is broken.
        """
        begin = 0
        while begin < len(piece):
            quote = piece.find(b'"', begin)
            end = len(piece) if quote < 0 else quote
            if self._in_string:
                is_escaped = self._take_text(piece[begin:end])
                if quote >= 0:
                    self._take_quote(is_escaped)
            else:
                self._take_structure(piece[begin:end])
                if quote >= 0:
                    self._begin_string()
            begin = end + 1

    def value(self) -> Any:
        """What was read, once all of it has come.

        Raises:
            BodyError: if it is no JSON or repeats a key.
        """
        try:
            value = json.loads(
                self._rest.decode("utf-8-sig"), object_pairs_hook=_without_repetition
            )
        except UnicodeDecodeError:
            raise BodyError("body must be UTF-8") from None
        except json.JSONDecodeError as error:
            raise BodyError(f"body must be JSON: {error.msg} (after {error.pos} bytes)") from None
        except ValueError as error:  # integers of more digits than Python converts
            raise BodyError(f"body must be JSON: {error}") from None
        if not self._long:
            return value
        texts = {f"{self._token}{i}": "".join(parts) for i, parts in enumerate(self._long)}
        return _put_back(value, texts)

    def _take_structure(self, text: bytes) -> None:
        self._values += sum(map(text.count, (b",", b":", b"[", b"{")))
        if self._values > self._limits.num_values:
            raise BodyError(f"body must have at most {self._limits.num_values} JSON values")
        for bracket in text.translate(None, _ALL_BUT_BRACKETS):
            self._depth += 1 if bracket in b"[{" else -1
            if self._depth > MAX_DEPTH:
                raise BodyError(f"body must be nested at most {MAX_DEPTH} deep")
        self._keep(text)

    def _begin_string(self) -> None:
        self._strings += 1
        if self._strings > 2 * self._limits.num_values:
            raise BodyError(f"body must have at most {self._limits.num_values} JSON values")
        self._keep(b'"')
        self._in_string, self._is_long = True, False
        self._string_begin = len(self._rest)

    def _take_text(self, text: bytes) -> bool:
        """Take what is inside a string; returns whether what follows is escaped."""
        text = self._escape + text
        backslashes = len(text) - len(text.rstrip(b"\\"))
        self._escape = b"\\" * (backslashes % 2)
        if self._escape:
            text = text[:-1]
        if self._is_long:
            self._long[-1].append(_plain(text))
            return bool(self._escape)
        if len(self._rest) - self._string_begin + len(text) <= self._long_string:
            self._keep(text)
            return bool(self._escape)
        if len(self._long) == MAX_LONG_STRINGS:
            raise BodyError(f"body must have at most {MAX_LONG_STRINGS} files")
        self._long.append([_plain(bytes(self._rest[self._string_begin :]) + text)])
        del self._rest[self._string_begin :]
        self._keep(f"{self._token}{len(self._long) - 1}".encode())
        self._is_long = True
        return bool(self._escape)

    def _take_quote(self, is_escaped: bool) -> None:
        if not is_escaped:
            self._keep(b'"')
            self._in_string = False
            return
        if self._is_long:
            raise _escapes_in_long_string()
        self._keep(b'\\"')
        self._escape = b""

    def _keep(self, text: bytes) -> None:
        self._rest += text
        if len(self._rest) > TEXT_BYTES:
            raise BodyError(f"body must have at most {TEXT_BYTES} bytes besides its audio", 413)


_ALL_BUT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def _plain(text: bytes) -> str:
    """Part of a long string, with the escapes that encoders put into base64."""
    if b"\\" in text:
        for escaped, plain in _LINE_ENDS:
            text = text.replace(escaped, plain)
    if b"\\" in text or not text.isascii():
        raise _escapes_in_long_string()
    return text.decode("ascii")


def _escapes_in_long_string() -> BodyError:
    return BodyError(f"strings of more than {LONG_STRING} bytes must be base64")


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise BodyError(f"{key[:64]} must be given once", param=key[:64])
            seen.add(key)
    return made


def _put_back(value: Any, texts: dict[str, str]) -> Any:
    if isinstance(value, str):
        return texts.get(value, value)
    if isinstance(value, list):
        return [_put_back(item, texts) for item in value]
    if isinstance(value, dict):
        return {texts.get(key, key): _put_back(item, texts) for key, item in value.items()}
    return value


def repeated(names: Iterable[str]) -> str | None:
    """The first name that comes twice, if one does; those of lists, `name[]`, may."""
    seen: set[str] = set()
    for name in names:
        if name in seen and not name.endswith("[]"):
            return name
        seen.add(name)
    return None
