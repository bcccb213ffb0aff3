# SPDX-License-Identifier: Apache-2.0
"""Workers get a run's tests in its order, and those that share a server together."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.parallel import ENTRYPOINTS, SLOW_FIRST, rank, units

ROOT = Path(__file__).parents[1]
SERVER, PACKAGED = SLOW_FIRST[:2]


def test_engines_come_late_and_slow_tests_last() -> None:
    tests = [
        ("tests/engine/v2/test_suites.py", True),
        ("tests/fork/test_real.py", True),
        (SERVER[0], True),
        ("tests/engine/audio/test_streaming.py", False),
        (SERVER[0], False),
        ("tests/fork/test_real.py", False),
    ]
    found = sorted(tests, key=lambda test: rank(*test))
    assert found == [*tests[:3:-1][::-1], tests[3], tests[2], tests[0], tests[1]]


def test_a_unit_is_a_file_s_neighbours_or_those_that_share_a_server() -> None:
    tests = ["a.py::x", "a.py::y[1::2]", "b.py::x", f"{SERVER[0]}::x", f"{SERVER[1]}::x", "a.py::z"]
    found = units(tests)
    assert list(found) == tests
    first, second, other, server, same, late = found.values()
    assert first == second and server == same
    assert len({first, other, server, late}) == 4


@pytest.mark.parametrize(("fixture", "files"), [("server", SERVER), ("packaged", PACKAGED)])
def test_who_asks_for_a_server_is_in_its_unit(fixture: str, files: tuple[str, ...]) -> None:
    asking = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / ENTRYPOINTS).glob("test_*.py")
        if re.search(rf"def test_\w+\([^)]*\b{fixture}: Server\b", text := path.read_text("utf-8"))
        and f"\ndef {fixture}(" not in text
    }
    assert asking == set(files)


def test_every_file_that_is_named_is_there() -> None:
    assert all((ROOT / file).is_file() for files in SLOW_FIRST for file in files)
