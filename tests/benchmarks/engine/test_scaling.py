# SPDX-License-Identifier: Apache-2.0
"""benchmark_scaling.py measures every point of its curves, on small engines."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.benchmark_scaling import QUICK, Point, Sizes, plan_points
from benchmarks.report_tables import scaling

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "benchmark_scaling.py"


def test_points_are_measured_once() -> None:
    points = plan_points(Sizes())
    assert len(points) == len(set(points))
    # Guided and plain of each batch, and what lanes are compared with.
    assert {Point(8, 32, 2), Point(8, 64), Point(8, 8, 6), Point(8, 48)} <= set(points)
    assert {Point(streams, 16) for streams in (1, 2, 4, 8, 16, 32)} <= set(points)
    assert {Point(8, 8, lanes, 2048) for lanes in (1, 2)} <= set(points)


@pytest.mark.slow
@pytest.mark.nightly
def test_all_curves_are_measured(tmp_path: Path) -> None:
    output = tmp_path / "scaling.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--output-json", str(output)],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(output.read_text())
    assert [row["groups"] for row in report["batch"]] == list(QUICK.groups)
    assert [row["lanes"] for row in report["lanes"]] == [1, *QUICK.lanes]
    assert [row["streams"] for row in report["streams"]] == list(QUICK.num_streams)
    assert [row["context"] for row in report["length"]] == list(QUICK.contexts)
    for name in ("batch", "lanes", "streams", "length"):
        for row in report[name]:
            for key, value in row.items():
                if key.endswith("_ms"):
                    low, high = value["range"]
                    assert 0 < low <= value["median"] <= high, (name, key)
    assert {"processor", "cores", "date", "torch", "vllm"} <= set(report["machine"])
    assert "| 3 |" in scaling(report, None)
