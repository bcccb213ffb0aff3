# SPDX-License-Identifier: Apache-2.0
"""Runs the fork on every supported upstream release but the installed one.

    python -m tests.releases.run [RELEASE ...]      # exit code 1 if anything fails

Of each it makes a runtime (docs/releases.md), and runs on it, in this virtual environment, the unit
tests of what upstream meets and a few engines, all releases at once. `make test` runs everything on
the installed one.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tools.fork.package import package_version
from tools.fork.project import Project, Release, load_project
from tools.fork.runtime import make_runtime

UNIT = (
    "tests/entrypoints",
    "tests/formats",
    "tests/frontend",
    "tests/messages",
    "tests/metrics",
    "tests/model",
    "tests/models",
    "tests/releases",
    "tests/sampler",
    "tests/scheduler",
    "tests/testing",
    "tests/test_compatibility.py",
    "tests/test_profile.py",
)
"""Tests without an engine, but for those marked slow; what has no part in upstream is left out."""

ENGINE = (
    "tests/engine/streams/test_parity.py::test_tokens_of_all_streams_equal_the_references[qwen3]",
    "tests/engine/streams/test_parity.py::test_tokens_of_all_streams_equal_the_references[switching]",
    "tests/engine/streams/test_lifecycle.py::test_the_waveform_is_the_codecs",
    "tests/engine/streams/test_text_only.py::test_greedy_tokens_equal_transformers",
    "tests/engine/guidance/test_groups.py::test_a_pair_is_not_split_by_preemption",
    "tests/engine/guidance/test_groups.py::test_streamed_tokens_are_the_whole_outputs",
    "tests/engine/audio/test_streaming.py::test_streams_are_the_audio_of_the_end",
    "tests/engine/musicgen/test_parity.py::test_all_kinds_of_requests_in_one_batch",
    "tests/engine/musicgen/test_melody.py::test_all_kinds_of_requests_in_one_batch",
)
"""A few engines: streams, guidance, audio and music; synchronous and asynchronous scheduling."""

OUTCOMES = ("passed", "failed", "errors")


def main() -> int:
    """Run them; 0 if all passed on all releases."""
    parser = argparse.ArgumentParser(prog="python -m tests.releases.run")
    parser.add_argument("releases", nargs="*", metavar="RELEASE", help="default: all others")
    project = load_project()
    named = parser.parse_args().releases
    others = [version for version in project.releases if version != project.default]
    totals = dict.fromkeys(OUTCOMES, 0)
    broken = False
    versions = named or others
    # One after the other: they share the cache and the built extension.
    folders = [_runtime(project, project.release(version)) for version in versions]
    with ThreadPoolExecutor(max(1, len(versions))) as threads:
        runs = threads.map(lambda pair: _run(project, *pair), zip(versions, folders, strict=True))
        for version, (failed, counts) in zip(versions, runs, strict=True):
            broken |= failed
            print(f"{version}: {_in_words(counts)}", flush=True)
            totals = {outcome: totals[outcome] + counts[outcome] for outcome in OUTCOMES}
    print(_in_words(totals))
    return int(broken)


def _run(project: Project, version: str, folder: Path) -> tuple[bool, dict[str, int]]:
    """Whether something failed on a release's runtime, and how many tests had which outcome."""
    arguments = ["-q", "-m", "not slow and not nightly", "-p", "no:cacheprovider", *UNIT, *ENGINE]
    status, output = _python(project, version, folder, "-m", "pytest", *arguments)
    return status != 0, count_outcomes(output)


def _runtime(project: Project, release: Release) -> Path:
    """The runtime of a release; an error unless Python imports that and not the installed one."""
    folder, wanted = make_runtime(project, release), package_version(project, release, "cpu")
    code = "import vllm; print(vllm.__version__)"
    status, output = _python(project, release.version, folder, "-c", code)
    if status or not output.endswith(f"{wanted}\n"):
        sys.exit(f"error: with {folder} on PYTHONPATH, vllm is not {wanted}")
    return folder


def _python(project: Project, version: str, folder: Path, *arguments: str) -> tuple[int, str]:
    """Run Python with a release's runtime; show what it prints, by release, and return it."""
    environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=project.root,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    output = ""
    for line in process.stdout:
        print(f"{version}  {line}", end="", flush=True)
        output += line
    return process.wait(), output


def count_outcomes(output: str) -> dict[str, int]:
    """What the last line of pytest's summary counts."""
    last = output.rstrip("\n").rpartition("\n")[2]
    found = {name.rstrip("s"): int(n) for n, name in re.findall(r"(\d+) (\w+)", last)}
    return {outcome: found.get(outcome.rstrip("s"), 0) for outcome in OUTCOMES}


def _in_words(counts: dict[str, int]) -> str:
    failed = counts["failed"] + counts["errors"]
    return f"{counts['passed']} passed, {failed} failed"


if __name__ == "__main__":
    sys.exit(main())
