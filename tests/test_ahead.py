# SPDX-License-Identifier: Apache-2.0
"""What a module's tests start ahead is started in order, and all of it is ended."""

import contextlib
from collections.abc import Iterator

import pytest

from tests.support.ahead import StartedAhead, selected

LETTERS = ["a", "b", "c"]


class Log(list[str]):
    """What was started and ended."""

    @contextlib.contextmanager
    def start(self, name: str) -> Iterator[str]:
        self.append(f"start {name}")
        try:
            yield name
        finally:
            self.append(f"end {name}")


def test_the_next_one_starts_before_a_test_has_its_own() -> None:
    log = Log()
    ahead = StartedAhead({"1": "a", "2": "b", "3": "a"}, log.start)
    for test, name in (("1", "a"), ("2", "b"), ("3", "a")):
        with ahead.take(test) as started:
            log.append(f"test {started}")
            assert started == name
    ahead.close()
    first = ["start a", "start b", "test a", "end a"]
    second = ["start a", "test b", "end b", "test a", "end a"]
    assert log == first + second


def test_what_was_not_taken_is_ended() -> None:
    log = Log()
    ahead = StartedAhead({"1": "a", "2": "b"}, log.start)
    with pytest.raises(RuntimeError), ahead.take("1"):
        raise RuntimeError
    ahead.close()
    assert log == ["start a", "start b", "end a", "end b"]


@pytest.mark.parametrize("letter", LETTERS)
def test_the_settings_are_those_of_the_selected_tests(
    letter: str, request: pytest.FixtureRequest
) -> None:
    found = selected(request, "letter")
    assert found[request.node.nodeid] == letter
    assert [one for one in LETTERS if one in found.values()] == list(found.values())
