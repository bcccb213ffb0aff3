# SPDX-License-Identifier: Apache-2.0
"""A batch on a Ray cluster of two nodes: the same bytes, whoever is killed."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.entrypoints.batch.model import ENGINE, write_model, write_rows
from tests.entrypoints.batch.test_output import contents
from tests.entrypoints.ray_cluster.cluster import needs_ray, processes_of
from vllm.entrypoints.speech.batch.engine import BatchEngine
from vllm.entrypoints.speech.batch.ray_pool import RayPool
from vllm.entrypoints.speech.batch.requests import RowRules
from vllm.entrypoints.speech.batch.rows import Row
from vllm.entrypoints.speech.batch.run import BatchSettings, run_batch
from vllm.entrypoints.speech.batch.settings import EngineSettings

NUM_ROWS, POISONED = 40, (7,)

pytestmark = [pytest.mark.slow, pytest.mark.processes, needs_ray]


def test_a_killed_engine_leaves_the_same_files(cluster: Any, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    rows = write_rows(tmp_path / "rows.jsonl", NUM_ROWS, POISONED)
    settings = EngineSettings({"model": str(model), **ENGINE})
    rules = RowRules("speak", tmp_path, {}, "tiny")

    def batch(name: str) -> BatchSettings:
        return BatchSettings(rows, tmp_path / name, "webdataset", 16, {})

    killed: list[int] = []

    def run(left: Any) -> Iterator[Any]:
        for number, result in enumerate(RayPool("", settings, rules, 3).run(left)):
            if number == 3:
                found = processes_of("EngineActor")
                assert len(found) == 2
                killed.append(found[0].pid)
                os.kill(found[0].pid, signal.SIGKILL)
            yield result

    summary = run_batch(batch("with Ray"), lambda: run, io.StringIO())
    assert (summary.num_new, summary.num_failed) == (NUM_ROWS, 1)
    assert killed and not psutil.pid_exists(killed[0])
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    engine = BatchEngine(settings, rules, 3)
    run_batch(batch("embedded"), lambda: engine.run, io.StringIO())
    engine.close()
    assert contents(tmp_path / "with Ray") == contents(tmp_path / "embedded")


def test_an_engine_that_cannot_be_made_is_said(cluster: Any, tmp_path: Path) -> None:
    settings = EngineSettings({"model": str(tmp_path / "none"), **ENGINE})
    pool = RayPool("", settings, RowRules("speak", tmp_path), 0)
    with pytest.raises(RuntimeError, match=r"^--ray: .*none"):
        list(pool.run([Row(0, {"text": "a"})]))
