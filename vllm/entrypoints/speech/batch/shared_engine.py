# SPDX-License-Identifier: Apache-2.0
"""One engine for several threads, each of which waits for the results of its own rows."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

from vllm.entrypoints.speech.batch.results import Result
from vllm.entrypoints.speech.batch.rows import Row


class RowsEngine(Protocol):
    """What `BatchEngine` has for whoever turns its crank."""

    @property
    def is_full(self) -> bool: ...

    @property
    def is_idle(self) -> bool: ...

    def add(self, row: Row) -> Result | None: ...

    def step(self) -> list[Result]: ...


class SharedEngine:
    """Runs an engine in a thread of its own, so that the rows of several calls share its batch.

    Args:
        make: makes the engine, in that thread.
        failed: called with the error if the engine fails; callers wait on.

    Raises:
        Exception: that `make` raises.
    """

    def __init__(
        self, make: Callable[[], RowsEngine], failed: Callable[[BaseException], None]
    ) -> None:
        self._make, self._failed = make, failed
        self._waiting: queue.SimpleQueue[tuple[Row, Future[Result]]] = queue.SimpleQueue()
        self._running: dict[int, list[Future[Result]]] = {}
        ready: Future[None] = Future()
        threading.Thread(target=self._run, args=(ready,), daemon=True).start()
        ready.result()

    def run(self, rows: Sequence[Row]) -> list[Result]:
        """The results of rows, in their order, once all of them have ended."""
        futures: list[Future[Result]] = []
        for row in rows:
            future: Future[Result] = Future()
            self._waiting.put((row, future))
            futures.append(future)
        return [future.result() for future in futures]

    def _run(self, ready: Future[None]) -> None:
        try:
            engine = self._make()
        except BaseException as error:
            ready.set_exception(error)
            return
        ready.set_result(None)
        try:
            while True:
                self._fill(engine)
                for result in engine.step():
                    self._ended(result)
        except BaseException as error:
            self._failed(error)

    def _fill(self, engine: RowsEngine) -> None:
        """Give the engine the rows that wait; wait for one if it has none."""
        while not engine.is_full:
            try:
                row, future = self._waiting.get(block=engine.is_idle)
            except queue.Empty:
                return
            same = self._running.setdefault(row.index, [])
            same.append(future)
            # Who runs the engine may have given up on a call, and have made it again.
            if len(same) == 1 and (result := engine.add(row)):
                self._ended(result)

    def _ended(self, result: Result) -> None:
        for future in self._running.pop(result.index):
            future.set_result(result)
