# SPDX-License-Identifier: Apache-2.0
"""Programs of the training that run beside each other, and again where they failed."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from tests.default_model.training_modules import training_modules

(background,) = training_modules("background")


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", code]


def jobs_of(tmp_path: Path, *jobs: Any) -> Any:
    return background.Jobs(jobs, tmp_path)


def wait(jobs: Any) -> None:
    for process in jobs.running.values():
        process.wait(60)


def test_a_job_waits_until_it_is_ready(tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    jobs = jobs_of(
        tmp_path,
        background.Job("late", python(f"open({str(second)!r}, 'w')"), first.exists),
        background.Job("early", python(f"open({str(first)!r}, 'w')"), lambda: True),
    )
    assert jobs.look(0.0) and list(jobs.running) == ["early"]
    wait(jobs)
    assert jobs.look(0.0) and list(jobs.running) == ["late"]
    wait(jobs)
    assert second.exists() and not jobs.look(0.0)


def test_what_failed_runs_again_after_a_pause(tmp_path: Path, capsys):
    mark = tmp_path / "mark"
    code = f"import os, sys\nf = {str(mark)!r}\nif os.path.exists(f): sys.exit()\nopen(f, 'w'); 1/0"
    jobs = jobs_of(tmp_path, background.Job("once", python(code), lambda: True))
    jobs.look(0.0)
    wait(jobs)
    assert jobs.look(1.0) and not jobs.running
    assert "once failed (1)" in capsys.readouterr().out
    assert "ZeroDivisionError" in (tmp_path / "once.log").read_text()
    assert jobs.look(1000.0) and jobs.running
    wait(jobs)
    assert not jobs.look(2000.0)


def test_a_job_runs_as_often_as_it_is_wanted(tmp_path: Path):
    count = tmp_path / "count"
    job = background.Job(
        "more",
        python(f"open({str(count)!r}, 'a').write('x')"),
        lambda: True,
        lambda: not count.exists() or len(count.read_text()) < 3,
    )
    jobs = jobs_of(tmp_path, job)
    for _ in range(3):
        assert jobs.look(0.0)
        wait(jobs)
    assert not jobs.look(0.0) and count.read_text() == "xxx"


def test_what_runs_ends_with_it_and_its_own_children_too(tmp_path: Path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    child = python(
        f"import time; f = open({str(pipe)!r}, 'w'); print(1, file=f, flush=True); time.sleep(600)"
    )
    code = f"import subprocess; subprocess.run({child!r})"
    jobs = jobs_of(tmp_path, background.Job("long", python(code), lambda: True))
    jobs.look(0.0)
    with pipe.open() as written:
        assert written.readline() == "1\n"
        jobs.stop()
        # The pipe ends with the last process that has it open.
        assert written.read() == ""


def test_stages_follow_from_the_files_that_there_are(tmp_path: Path):
    stages = {job.name: job for job in background.jobs_of(tmp_path, 1e-9, 10, 10, 10)}

    def ready() -> set[str]:
        return {name for name, job in stages.items() if job.ready()}

    def make(*names: str) -> None:
        for name in names:
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"0123")

    assert ready() == {"speech"}
    make(
        *(
            f"speech/{part}/{v}.jsonl"
            for part in ("validation", "evaluation")
            for v in ("heart", "joe")
        )
    )
    make(
        *(
            f"speech/{voice}/00000.{suffix}"
            for voice in ("heart", "joe", "many")
            for suffix in ("jsonl", "int16")
        )
    )
    assert ready() == {"speech", "codec", "pitch"}
    assert not stages["speech"].wanted()
    make(*(f"speech/heart/{i:05d}.jsonl" for i in range(1, 6)))
    assert ready() == {"speech", "codec", "pitch", "language_model"}
    make("codec/config.json")
    assert ready() == {"speech", "codec", "pitch", "language_model", "codes"}
    assert not stages["codec"].wanted() and stages["codes"].wanted()
    make(
        *(
            f"codes/{part}/{v}.npz"
            for part in ("validation", "evaluation")
            for v in ("heart", "joe")
        )
    )
    make(*(f"codes/{voice}/00000.npz" for voice in ("joe", "many")))
    make(*(f"codes/heart/{i:05d}.npz" for i in range(5)))
    assert stages["codes"].wanted()
    make("codes/heart/00005.npz")
    assert not stages["codes"].wanted()
    assert stages["pitch"].wanted()
    make(*(f"pitch/{voice}/00000.npz" for voice in ("joe", "many")))
    make(*(f"pitch/heart/{i:05d}.npz" for i in range(5)))
    assert "decoder" not in ready() and stages["pitch"].wanted()
    make("pitch/heart/00005.npz")
    assert "decoder" in ready() and not stages["pitch"].wanted()
    (tmp_path / "language_model_loss.jsonl").write_text('{"step": 8}\n')
    assert "predictions" not in ready()
    (tmp_path / "language_model_loss.jsonl").write_text('{"step": 8}\n{"step": 9}\n')
    assert "predictions" in ready() and "adapted_decoder" not in ready()
    make("predicted/joe/00000.npz", *(f"predicted/heart/{i:05d}.npz" for i in range(6)))
    (tmp_path / "voiced_decoder_loss.jsonl").write_text('{"step": 8}\n')
    assert "adapted_decoder" not in ready()
    (tmp_path / "voiced_decoder_loss.jsonl").write_text('{"step": 9}\n')
    assert "adapted_decoder" in ready()
