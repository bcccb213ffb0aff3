# SPDX-License-Identifier: Apache-2.0
"""The script for a machine with a GPU: each of its commands would start, and failures count."""

from __future__ import annotations

import argparse
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import hardware

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "gpu" / "run.sh"


def run_script(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(SCRIPT), *arguments]
    return subprocess.run(
        command, env=os.environ | settings, capture_output=True, text=True, check=False
    )


def commands(*names: str) -> dict[str, list[str]]:
    """The steps' commands, without the settings before them and the interpreter."""
    done = run_script("--dry-run", *names, PYTHON="PYTHON")
    assert done.returncode == 0, done.stderr
    steps = (line.split(": ", 1) for line in done.stdout.splitlines())
    found = {name: shlex.split(command) for name, command in steps}
    return {name: words[words.index("PYTHON") + 1 :] for name, words in found.items()}


STEPS = commands()


class Parsed(Exception):
    """A command line was accepted."""


@pytest.mark.parametrize("name", STEPS)
def test_the_command_of_a_step_is_accepted(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, *arguments = STEPS[name]
    if first == "-m":
        assert arguments[0] == "pytest"
        files = [word for word in arguments if word.startswith("tests/")]
        assert files and all((ROOT / file).exists() for file in files)
        (pattern,) = arguments[arguments.index("-k") + 1 :] if "-k" in arguments else [""]
        text = "".join(p.read_text() for f in files for p in [ROOT / f] if p.is_file())
        assert pattern.removeprefix("not ") in text
        return
    parse = argparse.ArgumentParser.parse_args

    def parse_only(parser: Any, args: Any = None, *more: Any) -> Any:
        parsed = parse(parser, args, *more)
        if args == []:  # a question for the defaults
            return parsed
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    monkeypatch.setattr(sys, "argv", [first, *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(Parsed):
        runpy.run_path(str(ROOT / first), run_name="__main__")


def test_the_page_has_every_step_and_no_other() -> None:
    page = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|.*\|$", page, re.MULTILINE)
    named = set(re.findall(r"`run\.sh ([a-z0-9 -]+)`", "\n".join(rows)))
    assert {step for steps in named for step in steps.split()} == set(STEPS)


def test_chosen_steps_alone_are_run() -> None:
    assert list(commands("kernels", "profile")) == ["kernels", "profile"]
    refused = run_script("kernel")
    assert refused.returncode == 2 and "no step kernel; there are: kernels " in refused.stderr


def test_a_step_that_fails_stops_no_other_and_counts(tmp_path: Path) -> None:
    """With an interpreter that refuses one of the benchmarks."""
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\ncase "$*" in *_sampling.py*) exit 3;; esac\necho "ran $*"\n')
    fake.chmod(0o755)
    settings = {
        "PYTHON": str(fake),
        "RESULTS": str(tmp_path / "results"),
        "SCRATCH": str(tmp_path / "scratch"),
    }
    failed = run_script("timing-sampling", "timing-operators", "parity-v1", **settings)
    assert failed.returncode == 1
    assert failed.stdout.count("ran ") == 2
    _, summary = failed.stdout.split("=== summary\n")
    words = [line.split()[:2] for line in summary.splitlines()]
    expected = [["timing-sampling", "FAILED"], ["timing-operators", "ok"], ["parity-v1", "ok"]]
    assert words == expected
    assert run_script("parity-v1", **settings).returncode == 0


def test_results_name_the_accelerator(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert hardware.describe_machine()["accelerator"] == "none"
    driver = tmp_path / "nvidia-smi"
    driver.write_text("#!/bin/sh\necho 'A Card, 80000 MiB'\n")
    driver.chmod(0o755)
    assert hardware.describe_machine()["accelerator"] == "A Card, 80000 MiB"
