# SPDX-License-Identifier: Apache-2.0
"""What becomes of a row: an entry of the manifest, and a file of audio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

SPOKEN: tuple[str, ...] = (
    *("text", "path", "seconds", "sample_rate", "channels", "codes_sha256"),
    *("finish_reason", "seed", "error"),
)
"""Fields of an entry of `speak-batch`, after `index` and `id`."""
WRITTEN: tuple[str, ...] = ("source", "text", "seconds", "finish_reason", "seed", "error")
"""Fields of an entry of `transcribe-batch`, after `index` and `id`."""


@dataclass(frozen=True)
class Result:
    """What has become of a row.

    Attributes:
        index: of the row.
        entry: of the manifest, but for where the audio is.
        data: the audio file.
        suffix: of its name; empty if the row has no file.
    """

    index: int
    entry: dict[str, Any]
    data: bytes = b""
    suffix: str = ""
