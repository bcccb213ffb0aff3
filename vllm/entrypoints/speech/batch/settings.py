# SPDX-License-Identifier: Apache-2.0
"""Which engine works off the rows of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class EngineSettings:
    """Of an engine.

    Attributes:
        options: upstream's engine arguments, by name.
        voices: folder of recorded voices.
    """

    options: Mapping[str, Any]
    voices: Path | None = None
