# SPDX-License-Identifier: Apache-2.0
"""One engine for several callers, and the room of a cluster; without an engine and without Ray."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from vllm.entrypoints.speech.batch.ray_pool import Room, room
from vllm.entrypoints.speech.batch.results import Result
from vllm.entrypoints.speech.batch.rows import Row
from vllm.entrypoints.speech.batch.settings import EngineSettings
from vllm.entrypoints.speech.batch.shared_engine import SharedEngine

PLACES = 3


class FakeEngine:
    """Ends the row that came last in each step; refuses number 13 and fails at 99. While it is not
    free, a step waits for `go`, and ends a row if that is true."""

    def __init__(self) -> None:
        self.running: list[int] = []
        self.begun: list[int] = []
        self.most = 0
        self.go: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self.is_free = False

    @property
    def is_full(self) -> bool:
        return len(self.running) >= PLACES

    @property
    def is_idle(self) -> bool:
        return not self.running

    def add(self, row: Row) -> Result | None:
        self.begun.append(row.index)
        if row.index == 13:
            return Result(13, {"error": "unlucky"})
        self.running.append(row.index)
        self.most = max(self.most, len(self.running))
        return None

    def step(self) -> list[Result]:
        if not self.is_free and not self.go.get():
            return []
        if 99 in self.running:
            raise RuntimeError("the device is gone")
        return [Result(self.running.pop(), {"error": None})] if self.running else []


def rows(*numbers: int) -> list[Row]:
    return [Row(number, {}) for number in numbers]


def test_calls_share_the_batch_and_get_their_own_rows_in_order() -> None:
    engine = FakeEngine()
    engine.is_free = True
    shared = SharedEngine(lambda: engine, lambda error: None)
    calls = [rows(*range(begin, begin + 7)) for begin in range(0, 70, 7)]
    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(shared.run, calls))
    assert [[r.index for r in part] for part in found] == [[r.index for r in c] for c in calls]
    assert found[1][6].entry == {"error": "unlucky"}
    assert engine.most <= PLACES and sorted(engine.begun) == list(range(70))


def test_a_row_that_runs_is_not_begun_again() -> None:
    engine = FakeEngine()
    shared = SharedEngine(lambda: engine, lambda error: None)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(shared.run, rows(1))
        while not engine.running:
            pass
        second = pool.submit(shared.run, rows(1, 2))
        while shared._waiting.qsize() < 2:
            pass
        for ends in (False, True, True):
            engine.go.put(ends)
        assert first.result()[0].index == 1
        assert [r.index for r in second.result()] == [1, 2]
    assert engine.begun == [1, 2]


def test_an_engine_that_fails_is_reported() -> None:
    failed: list[BaseException] = []
    happened = threading.Event()

    def report(error: BaseException) -> None:
        failed.append(error)
        happened.set()

    engine = FakeEngine()
    engine.is_free = True
    shared = SharedEngine(lambda: engine, report)
    threading.Thread(target=shared.run, args=(rows(99),), daemon=True).start()
    assert happened.wait(60)
    assert str(failed[0]) == "the device is gone"

    def broken() -> Any:
        raise ValueError("no such model")

    with pytest.raises(ValueError, match="no such model"):
        SharedEngine(broken, report)


def nodes(*resources: dict[str, float]) -> list[dict[str, Any]]:
    return [{"Alive": True, "Resources": found} for found in resources]


@pytest.mark.parametrize(
    ("found", "parallel", "num_cpus", "expected"),
    [
        ([{"CPU": 8}, {"CPU": 16}], 1, None, Room(3, 8, 0)),
        ([{"CPU": 8}, {"CPU": 16}], 1, 4, Room(6, 4, 0)),
        ([{"CPU": 8, "GPU": 8}, {"CPU": 64, "GPU": 4}, {"CPU": 4}], 1, None, Room(12, 1, 1)),
        ([{"CPU": 8, "GPU": 8}, {"CPU": 64, "GPU": 3}], 2, 2, Room(5, 2, 2)),
        ([{"CPU": 2, "GPU": 8}], 1, 1, Room(2, 1, 1)),
    ],
)
def test_as_many_engines_as_there_is_room_for(
    found: list[dict[str, float]], parallel: int, num_cpus: int | None, expected: Room
) -> None:
    settings = EngineSettings({"model": "tiny", "tensor_parallel_size": parallel})
    left = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
    assert room([*nodes(*found), left], settings, num_cpus) == expected


def test_no_room_is_said() -> None:
    settings = EngineSettings({"model": "tiny", "tensor_parallel_size": 4})
    with pytest.raises(ValueError, match="no node has the 2 CPUs and 4 GPUs"):
        room(nodes({"CPU": 8, "GPU": 2}), settings, 2)
    with pytest.raises(ValueError, match="--cpus-per-engine must be at least 1, not 0"):
        room(nodes({"CPU": 8}), settings, 0)
