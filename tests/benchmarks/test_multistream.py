# SPDX-License-Identifier: Apache-2.0
"""Sections of a benchmark's JSON that are measured again one by one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import benchmark_multistream as benchmark

MACHINE: dict[str, str | int] = {"processor": "a processor", "cores": 2, "date": "2001-02-03"}


def test_sections_of_the_same_machine_stay(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    assert benchmark.kept_sections(file, MACHINE) == benchmark.kept_sections(None, MACHINE) == {}
    file.write_text(json.dumps({"machine": MACHINE, "step": 1, "speech": 2}))
    later = MACHINE | {"date": "2001-02-04"}
    assert benchmark.kept_sections(file, later) == {"step": 1, "speech": 2}
    with pytest.raises(ValueError, match=r"--output-json: .*another machine"):
        benchmark.kept_sections(file, MACHINE | {"cores": 3})


def test_every_variant_is_first_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def run(variant: str) -> dict[str, float]:
        order.append(variant)
        return {"value": len(order)}

    monkeypatch.setattr(benchmark, "run_variant", run)
    one, other = benchmark.run_interleaved([("a",), ("b",)], 3)
    assert order == ["a", "b", "b", "a", "a", "b"]
    assert [r["value"] for r in one] == [1, 4, 5] and [r["value"] for r in other] == [2, 3, 6]
