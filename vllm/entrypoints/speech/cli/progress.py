# SPDX-License-Identifier: Apache-2.0
"""A line that says what a command is at."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import IO

from tqdm import tqdm

INTERVAL = 0.5  # seconds between two drawings


@contextlib.contextmanager
def progress(what: str, stream: IO[str], is_visible: bool | None = None) -> Iterator[tqdm]:
    """A line on `stream` with the time that has passed, wiped away at the end.

    Call `set_description_str` of what is yielded to say something else.

    Args:
        what: said first.
        stream: a terminal; on anything else nothing is written.
        is_visible: overrides whether `stream` is a terminal.
    """
    hide = None if is_visible is None else not is_visible
    with tqdm(
        desc=what, bar_format="{desc} ({elapsed})", file=stream, disable=hide, leave=False
    ) as line:
        if line.disable:
            yield line
            return
        stop = threading.Event()

        def draw() -> None:
            while not stop.wait(INTERVAL):
                line.refresh()

        # Imports and weights keep the main thread busy for seconds.
        thread = threading.Thread(target=draw, daemon=True)
        thread.start()
        try:
            yield line
        finally:
            stop.set()
            thread.join()
