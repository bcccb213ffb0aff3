# SPDX-License-Identifier: Apache-2.0
"""A small progress bar on standard error."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO


class ProgressBar:
    """Shows how many of ``total`` bytes are done; silent when the stream is not a terminal.

    total: bytes expected, or None when unknown.
    """

    WIDTH = 30
    INTERVAL = 0.1  # seconds between two drawings

    def __init__(self, label: str, total: int | None, stream: TextIO | None = None) -> None:
        self.label = label
        self.total = total
        self.done = 0
        self._stream = stream or sys.stderr
        self._visible = self._stream.isatty()
        self._drawn = 0.0
        self._start = time.monotonic()

    def update(self, amount: int) -> None:
        """Count ``amount`` more bytes."""
        self.done += amount
        now = time.monotonic()
        if self._visible and now - self._drawn >= self.INTERVAL:
            self._drawn = now
            self._draw()

    def _draw(self) -> None:
        rate = self.done / max(time.monotonic() - self._start, 1e-6) / 1e6
        if self.total:
            share = min(self.done / self.total, 1.0)
            filled = round(share * self.WIDTH)
            bar = f"[{'#' * filled}{'.' * (self.WIDTH - filled)}] {share:4.0%}"
        else:
            bar = f"{self.done / 1e6:.0f} MB"
        self._stream.write(f"\r{self.label} {bar} {rate:.1f} MB/s ")
        self._stream.flush()

    def __enter__(self) -> ProgressBar:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._visible:
            self._draw()
            self._stream.write("\n")
