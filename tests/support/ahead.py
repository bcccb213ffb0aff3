# SPDX-License-Identifier: Apache-2.0
"""Processes that take long to start, started while the test before theirs runs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Generic, TypeVar

import pytest


def selected(request: pytest.FixtureRequest, name: str) -> dict[str, Any]:
    """The values of a parameter by test, in the order of this module's selected tests."""
    specs = {
        item.nodeid: getattr(item, "callspec", None)
        for item in request.session.items
        if item.path == request.node.path
    }
    return {test: spec.params[name] for test, spec in specs.items() if spec and name in spec.params}


Setting = TypeVar("Setting")
Started = TypeVar("Started")


class StartedAhead(Generic[Setting, Started]):
    """One started thing per test; a test that takes its own has the next one's started.

    Starting must not wait: a process is started, and whether it is up is asked for later.
    """

    def __init__(
        self,
        settings: Mapping[str, Setting],
        start: Callable[[Setting], AbstractContextManager[Started]],
    ) -> None:
        self._settings, self._start = settings, start
        self._running: dict[str, tuple[contextlib.ExitStack, Started]] = {}

    @contextlib.contextmanager
    def take(self, test: str) -> Iterator[Started]:
        """What is started for a test, ended with the context."""
        tests = list(self._settings)
        place = tests.index(test)
        for one in tests[place : place + 2]:
            self._begin(one)
        stack, started = self._running.pop(test)
        with stack:
            yield started

    def close(self) -> None:
        """End what was started and not taken, because a test before it failed."""
        while self._running:
            _, (stack, _) = self._running.popitem()
            stack.close()

    def _begin(self, test: str) -> None:
        if test not in self._running:
            stack = contextlib.ExitStack()
            started = stack.enter_context(self._start(self._settings[test]))
            self._running[test] = stack, started
