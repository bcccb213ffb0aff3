# SPDX-License-Identifier: Apache-2.0
"""Those of upstream's tests that meet half-made objects run with ours; and how they are run."""

from pathlib import Path

import pytest

from tests.upstream import run
from tools.fork.project import load_project

QUICK = (
    "tests/v1/engine/test_output_processor.py",
    "tests/v1/test_request.py",
    "tests/v1/core/test_scheduler.py::test_abort_request_when_structured_output",
    "tests/v1/core/test_async_scheduler.py::test_abort_request_when_structured_output",
)

TOY = """
import pytest

@pytest.mark.parametrize("name", ["a b", "c::d"])
def test_passes(name):
    pass

class TestClass:
    def test_passes(self):
        pass

    def test_fails(self):
        raise OSError("no such model\\nand more")

@pytest.mark.skip("no GPU")
def test_is_skipped():
    pass

@pytest.fixture
def broken():
    yield
    raise ValueError("at the end")

def test_fails_at_its_end(broken):
    pass
"""


@pytest.mark.slow
def test_what_passes_on_the_unpatched_release_passes_here() -> None:
    project = load_project()
    expected = [test for test in run.read_list(run.PASSING) if test.startswith(QUICK)]
    assert len(expected) > 20
    tests = run.unpack_tests(project, project.release())
    assert run.broken(expected, run.run_tests(tests, expected)) == {}


def test_outcomes_are_read_and_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tests" / "v1").mkdir(parents=True)
    (tmp_path / "tests" / "v1" / "test_toy.py").write_text(TOY)
    outcomes = run.run_tests(tmp_path, ["tests/v1"])
    file = "tests/v1/test_toy.py"
    passed = [
        f"{file}::TestClass::test_passes",
        *(f"{file}::test_passes[{name}]" for name in ("a b", "c::d")),
    ]
    assert sorted(test for test, error in outcomes.items() if not error) == passed
    assert "no such model and more" in outcomes[f"{file}::TestClass::test_fails"]
    assert "at the end" in outcomes[f"{file}::test_fails_at_its_end"]
    monkeypatch.setattr(run, "PASSING", tmp_path / "passing.txt")
    monkeypatch.setattr(run, "NOT_HERE", tmp_path / "not_here.txt")
    run.record(outcomes, "1.2.3")
    assert run.read_list(run.PASSING) == passed
    assert run.NOT_HERE.read_text().splitlines()[1:] == [
        "",
        "# 1: fails on the unpatched release too",
        f"{file}::test_fails_at_its_end",
        "",
        "# 1: needs a file of the model hub",
        f"{file}::TestClass::test_fails",
        "",
        "# 1: skipped by upstream on this platform",
        f"{file}::test_is_skipped",
    ]
    # The ids are those that pytest takes: these alone are run again.
    again = run.run_tests(tmp_path, passed)
    assert sorted(again) == passed and run.broken(passed, again) == {}
    expected = [*passed, f"{file}::TestClass::test_fails", f"{file}::test_is_gone"]
    failed = run.broken(expected, outcomes)
    assert list(failed) == expected[-2:] and failed[expected[-1]] == "was not run"


def test_tests_that_cannot_be_run_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="test_gone"):
        run.run_tests(tmp_path, ["tests/test_gone.py"])
