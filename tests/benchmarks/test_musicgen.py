# SPDX-License-Identifier: Apache-2.0
"""What benchmark_musicgen.py makes of its rounds, without an engine."""

from __future__ import annotations

from argparse import Namespace
from typing import Any

import pytest

from benchmarks.benchmark_musicgen import (
    UNEVEN_FRAMES,
    UNEVEN_SECONDS,
    measure,
    parse_arguments,
    uneven_requests,
)


class FakeVariant:
    """Of a fixed speed, in calls that are counted."""

    def __init__(self, frames_per_second: float) -> None:
        self.speed = frames_per_second
        self.calls: list[tuple[Any, ...]] = []

    def call(self, name: str, *arguments: Any) -> Any:
        self.calls.append((name, *arguments))
        if name == "equal":
            count, guided, _ = arguments
            return self.speed * count * (0.5 if guided else 1.0)
        frames, _, guided = arguments
        seconds = sum(frames) / self.speed
        return seconds, seconds / 2


class Bar:
    def update(self) -> None:
        pass


def test_ratios_say_how_many_times_faster_the_fork_is() -> None:
    variants: Any = {"fork": FakeVariant(60.0), "transformers": FakeVariant(20.0)}
    options = Namespace(requests=[1, 4], uneven=5, frames=10, rounds=3)
    found = measure(variants, options, Bar())
    assert [row["fork_over_transformers"]["ratio"] for row in found["equal"]] == [3.0] * 4
    assert [row["fork_frames_per_second"] for row in found["equal"]] == [30.0, 60.0, 120.0, 240.0]
    for row in found["uneven"]:
        assert row["fork_over_transformers"]["ratio"] == 3.0
        assert row["latency_transformers_over_fork"]["ratio"] == 3.0
        assert row["transformers_seconds"] == pytest.approx(3 * row["fork_seconds"], abs=0.02)
    assert [row["fork"]["ratio"] for row in found["guided_over_unguided"]] == [0.5, 0.5]
    calls = variants["fork"].calls
    # A warm-up of every case, then the rounds.
    assert len(calls) == 4 + 3 * (4 + 2)
    assert calls[0] == ("equal", 1, True, 8)
    assert calls == variants["transformers"].calls


def test_uneven_requests_are_of_all_lengths_and_come_one_after_another() -> None:
    frames, arrivals = uneven_requests(16)
    assert (min(frames), max(frames)) == UNEVEN_FRAMES
    assert len(set(frames)) == 16 and frames != sorted(frames)
    assert arrivals == sorted(arrivals) and arrivals[0] == 0 < arrivals[1]
    assert arrivals[-1] < UNEVEN_SECONDS


def test_quick_is_small_but_for_what_is_given() -> None:
    options = parse_arguments(["--quick", "--rounds", "2"])
    assert (options.hidden_size, options.num_layers, options.rounds) == (64, 2, 2)
    assert options.requests == [1, 2]
    assert parse_arguments([]).requests == [1, 4, 8, 16, 32]
