# SPDX-License-Identifier: Apache-2.0
"""What the tests of other releases run."""

from __future__ import annotations

import pytest

from tests.releases.run import ENGINE, UNIT, count_outcomes
from tools.fork.project import load_project

ROOT = load_project().root


@pytest.mark.parametrize("test", [*UNIT, *ENGINE])
def test_what_is_run_is_there(test: str) -> None:
    file, _, name = test.partition("::")
    path = ROOT / file
    assert path.exists()
    assert not name or f"def {name.partition('[')[0]}(" in path.read_text(encoding="utf-8")


def test_the_last_line_of_pytest_is_counted() -> None:
    last = "2 failed, 10 passed, 3 skipped, 1 error in 5.00s\n"
    counts = {"passed": 10, "failed": 2, "errors": 1}
    assert count_outcomes(f"7 passed in the middle\n{last}") == counts
    assert count_outcomes("5 passed, 2 errors in 1s (0:00:01)\n")["errors"] == 2
    assert count_outcomes("") == dict.fromkeys(counts, 0)
