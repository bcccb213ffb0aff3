# SPDX-License-Identifier: Apache-2.0
"""Errors of a request's schema: the field as the client wrote it, and what is accepted."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

_MOST_SHOWN = 40
"""Characters of a value that an error repeats."""
_KINDS = {
    "dict_type": "must be an object",
    "model_attributes_type": "must be an object",
    "model_type": "must be an object",
    "missing": "is required",
    "finite_number": "must be a finite number",
    "string_type": "must be text",
    "string_unicode": "must be valid Unicode",
}
_NUMBER = re.compile(r"(greater|less) than or equal to (\S+)")


def describe(error: Mapping[str, Any], body: Any) -> tuple[str, str | None]:
    """The message and the field of one of pydantic's errors.

    Args:
        error: as `ValidationError.errors` lists it, its location beginning with "body".
        body: what was validated.
    """
    kind, context = str(error.get("type")), error.get("ctx") or {}
    location: Sequence[Any] = tuple(error.get("loc", ()))[1:]
    if kind == "json_invalid":
        return f"body must be JSON: {context.get('error', 'it cannot be read')}", None
    is_absent = kind in ("missing", "refused")
    path = field_path(location, body, is_absent)
    words = _words(kind, str(error.get("msg", "invalid")), error.get("input"))
    return f"{path or 'body'} {words}", path or None


def field_path(location: Sequence[Any], body: Any, is_absent: bool = False) -> str:
    """`messages[0].content` of ("messages", 0, "content"), in the client's words.

    pydantic's locations also hold the names of a union's cases, which stand nowhere in the body.

    Args:
        location: keys, indices and names of cases.
        body: what was validated.
        is_absent: whether the last one may be of a field that is not in the body.
    """
    path, value = "", body
    for index, part in enumerate(location):
        is_last = index == len(location) - 1
        if isinstance(part, int):
            if not isinstance(value, Sequence) or not 0 <= part < len(value):
                continue
            # Forms repeat `name[]`, and give no numbers.
            path += "" if path.endswith("[]") else f"[{part}]"
            value = value[part]
        elif isinstance(value, Mapping) and part in value:
            path += f".{part}" if path else str(part)
            value = value[part]
        elif is_absent and is_last:
            path += f".{part}" if path else str(part)
    return path if path.isprintable() else ""


def _words(kind: str, message: str, value: Any) -> str:
    if kind in _KINDS:
        return _KINDS[kind]
    words = re.sub(r"^(Input|String|List|Value) should ", "must ", message)
    words = _NUMBER.sub(lambda m: f"at {'least' if m[1] == 'greater' else 'most'} {m[2]}", words)
    words = re.sub(r" after validation, not (\d+)$", r", not \1", words)
    shows_value = words.startswith("must be") and ", not " not in words
    return f"{words}, not {value!r}" if shows_value and _is_short(value) else words


def _is_short(value: Any) -> bool:
    if isinstance(value, (bool, float)) or value is None:
        return value is not None
    if isinstance(value, int):
        return abs(value) < 10**_MOST_SHOWN
    return isinstance(value, str) and len(value) <= _MOST_SHOWN and value.isprintable()
