# SPDX-License-Identifier: Apache-2.0
"""In which order tests run, and how `pytest -n` (pytest-xdist) deals them out to its workers.

Every worker starts as one process does: tests without an engine first, then those with one, then
those marked `slow`. What is dealt out at once is a file's neighbours in that order, or those of
files that share a server.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import PurePath
from typing import Any

import pytest

ENTRYPOINTS = "tests/entrypoints"
SLOW_FIRST = (
    # Of the one server, and of the packaged model's.
    tuple(
        f"{ENTRYPOINTS}/test_{name}.py"
        for name in (
            *("server", "requests", "serving_page", "fuzz", "cli"),
            *("monitoring", "speech_stream", "traces"),
        )
    ),
    (f"{ENTRYPOINTS}/test_client_tools.py", f"{ENTRYPOINTS}/test_readme.py"),
    # Of one Ray cluster.
    tuple(f"{ENTRYPOINTS}/ray_cluster/test_ray_{name}.py" for name in ("serve", "pool")),
    ("tests/engine/v2/test_suites.py",),
    (f"{ENTRYPOINTS}/test_shutdown.py",),
    (f"{ENTRYPOINTS}/test_commands.py",),
)
"""Files whose slow tests come first, the longest before the others, so that no worker begins a long
one when the others have nothing left. Those of one tuple share what they start: one worker has all.
"""

_PLACE = {file: place for place, files in enumerate(SLOW_FIRST) for file in files}


def rank(file: str, is_slow: bool) -> tuple[bool, bool, int]:
    """A test's place in the order of a run; `file` as in the ids of its tests."""
    place = _PLACE.get(file, len(SLOW_FIRST)) if is_slow else 0
    return is_slow, not is_slow and "engine" in PurePath(file).parent.parts, place


def units(tests: Sequence[str]) -> dict[str, str]:
    """Of each test, by id and in the order of a run, the unit that one worker gets with it."""

    def owner(test: str) -> str:
        file = test.split("::", 1)[0]
        place = _PLACE.get(file)
        return file if place is None else SLOW_FIRST[place][0]

    runs = itertools.groupby(tests, owner)
    return {test: f"{number} {name}" for number, (name, run) in enumerate(runs) for test in run}


def make_scheduler(config: pytest.Config, log: Any) -> Any:
    """The scheduler that gives each worker a unit after the other, in their order."""
    from xdist.scheduler import LoadScopeScheduling

    class InOrder(LoadScopeScheduling):
        """Deals out `units` in their order, not the largest first."""

        unit_of: dict[str, str]

        def schedule(self) -> None:
            if self.collection is None:
                self.config.option.loadscopereorder = False
                self.unit_of = units(next(iter(self.registered_collections.values())))
            super().schedule()

        def _split_scope(self, nodeid: str) -> str:
            return self.unit_of[nodeid]

    return InOrder(config, log)
