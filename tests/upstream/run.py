# SPDX-License-Identifier: Apache-2.0
"""Runs upstream's own tests on the fork, outside its tree, and names those that it breaks.

    python -m tests.upstream.run            # those that passing.txt lists; exit code 1 if any fails
    python -m tests.upstream.run --record   # run all of FILES on the unpatched release, list anew

The tests come from the pinned source archive. There is no model hub: its cache holds one
config.json, which most of upstream's scheduler tests need.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Sequence
from pathlib import Path

from tools.fork.fetch import fetch
from tools.fork.package import machine, target_device, unpack, version_module
from tools.fork.project import PACKAGE, Project, Release, load_project
from tools.fork.tree import VERSION_FILE

HERE = Path(__file__).parent
PASSING = HERE / "passing.txt"
"""Tests that pass on the unpatched release, one id a line."""
NOT_HERE = HERE / "not_here.txt"
"""Tests of FILES that do not pass on the unpatched release here, and why."""

FILES = (
    "tests/v1/core",
    "tests/v1/engine",
    "tests/v1/executor",
    "tests/v1/metrics",
    "tests/v1/streaming_input",
    "tests/v1/structured_output",
    "tests/v1/worker",
    "tests/v1/test_kv_cache_spec_registry.py",
    "tests/v1/test_outputs.py",
    "tests/v1/test_request.py",
    "tests/v1/test_serial_utils.py",
)
"""What is run: what the patches touch of the V1 engine and can be run without a model or a GPU."""

OPT = {
    "architectures": ["OPTForCausalLM"],
    "model_type": "opt",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "ffn_dim": 3072,
    "vocab_size": 50272,
    "max_position_embeddings": 2048,
    "word_embed_proj_dim": 768,
    "torch_dtype": "float16",
    "bos_token_id": 2,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
"""The config.json of facebook/opt-125m."""

SECONDS_PER_TEST = 120
"""After which a test counts as hung; the slowest that passes takes a quarter."""

REASONS = {
    "needs a file of the model hub": (
        r"huggingface|OSError|LocalEntryNotFound|repository ID|Engine core init"
    ),
    "needs a GPU or Triton": r"cuda|triton|gpu|nccl|flash.?attn|'function' object is not subscr",
    "takes too long": r"Timeout",
    "needs a package that is not installed": r"ModuleNotFoundError|ImportError|No module named",
}
"""Why tests cannot run here, by what their errors say; the first that matches is given."""


def unpack_tests(project: Project, release: Release) -> Path:
    """Folder with upstream's tests and their pytest settings, unpacked once."""
    return _unpack(project, release, ("tests/", "pyproject.toml"), "tests")


def unpatched_package(project: Project, release: Release) -> Path:
    """Folder with the release's unpatched package and the wheel's binaries."""
    folder = _unpack(project, release, (f"{PACKAGE}/",), "unpatched")
    wheel = fetch(project, release.wheel(target_device(), machine()))
    binaries = unpack(project, release, wheel)
    for source in binaries.rglob("*"):
        target = folder / source.relative_to(binaries)
        if source.is_file() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source)
    (folder / VERSION_FILE).unlink(missing_ok=True)
    (folder / VERSION_FILE).write_text(version_module(f"{release.version}+{target_device()}"))
    return folder


def _unpack(project: Project, release: Release, prefixes: tuple[str, ...], name: str) -> Path:
    folder = project.build / "upstream-tests" / release.version / name
    if folder.is_dir():
        return folder
    partial = folder.with_name(f".{name}.{os.getpid()}.partial")
    with tarfile.open(fetch(project, release.archive)) as archive:
        for member in archive:
            _, _, member.name = member.name.partition("/")
            if member.name.startswith(prefixes):
                archive.extract(member, partial, filter="data")
    partial.replace(folder)
    return folder


def write_hub(folder: Path) -> Path:
    """A cache of the model hub that holds OPT's configuration and nothing else."""
    model = folder / "hub" / "models--facebook--opt-125m"
    commit = "0" * 40
    for name, text in {
        "refs/main": commit,
        f"snapshots/{commit}/config.json": json.dumps(OPT),
    }.items():
        path = model / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def run_tests(tests: Path, selected: Sequence[str], package: Path | None = None) -> dict[str, str]:
    """Run upstream's tests in a process of their own.

    Args:
        tests: what `unpack_tests` returned; no vllm package lies beside the tests.
        selected: files, folders or ids of tests.
        package: folder on Python's path to import vllm from; None: the one that is installed.

    Returns:
        By test id: "" if it passed, otherwise the error's first line ("skipped: ..." too).

    Raises:
        RuntimeError: if pytest could not run them, with what it printed.
    """
    report = tests / f"report-{os.getpid()}.xml"
    arguments = tests / f"selected-{os.getpid()}.txt"
    arguments.write_text("\n".join(selected))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--tb=line"]
    command += [f"--timeout={SECONDS_PER_TEST}", "--continue-on-collection-errors"]
    command += [f"--junitxml={report}", "-o", "asyncio_default_fixture_loop_scope=function"]
    path = [*([] if package is None else [str(package)]), str(tests)]
    path += filter(None, [os.environ.get("PYTHONPATH")])
    settings = {
        "PYTHONPATH": os.pathsep.join(path),
        "HF_HOME": str(write_hub(tests / "hub-cache")),
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
    }
    environment = {k: v for k, v in os.environ.items() if k != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    done = subprocess.run(
        [*command, f"@{arguments}"],
        cwd=tests,
        env=environment | settings,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    try:
        if done.returncode not in (0, 1) or not report.exists():
            raise RuntimeError(done.stdout[-4000:])
        return read_report(report, tests)
    finally:
        report.unlink(missing_ok=True)
        arguments.unlink()


def read_report(report: Path, tests: Path) -> dict[str, str]:
    """Outcomes by test id, as `run_tests` returns them, of a report in JUnit's format."""
    outcomes: dict[str, str] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        test = _test_id(case.get("classname", ""), case.get("name", ""), tests)
        outcomes.setdefault(test, "")
        for kind in ("failure", "error", "skipped"):
            found = case.find(kind)
            if found is not None:
                message = f"{found.get('message', '')} {found.text or ''}".strip()
                first = " ".join(message.split())[:600] or kind
                outcomes[test] = f"skipped: {first}" if kind == "skipped" else first
    return outcomes


def _test_id(class_name: str, name: str, tests: Path) -> str:
    """pytest's id of a test whose module and class JUnit writes as one dotted name."""
    parts = class_name.split(".")
    for count in range(len(parts), 0, -1):
        file = "/".join(parts[:count]) + ".py"
        if (tests / file).is_file():
            return "::".join([file, *parts[count:], name])
    return "::".join(filter(None, [class_name.replace(".", "/"), name]))


def read_list(path: Path) -> list[str]:
    """Lines of a list that are neither empty nor comments."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def record(outcomes: dict[str, str], version: str) -> None:
    """Write PASSING and NOT_HERE from the outcomes on the unpatched release."""
    passing = sorted(test for test, error in outcomes.items() if not error)
    head = (
        f"# Written by `python -m tests.upstream.run --record`. vLLM {version}, unpatched, CPU.\n"
    )
    PASSING.write_text(head + "".join(f"{test}\n" for test in passing), encoding="utf-8")
    by_reason: dict[str, dict[str, int]] = {}
    for test, error in sorted(outcomes.items()):
        if error:
            counts = by_reason.setdefault(reason_for(error), {})
            function = test.partition("[")[0]
            counts[function] = counts.get(function, 0) + 1
    lines = [head]
    for reason, counts in sorted(by_reason.items()):
        lines.append(f"\n# {sum(counts.values())}: {reason}\n")
        lines += [f"{test}{f' ({n} cases)' if n > 1 else ''}\n" for test, n in counts.items()]
    NOT_HERE.write_text("".join(lines), encoding="utf-8")


def reason_for(error: str) -> str:
    """Why a test does not pass on the unpatched release."""
    if error.startswith("skipped: "):
        return "skipped by upstream on this platform"
    for reason, pattern in REASONS.items():
        if re.search(pattern, error, re.IGNORECASE):
            return reason
    return "fails on the unpatched release too"


def broken(expected: Iterable[str], outcomes: dict[str, str]) -> dict[str, str]:
    """The expected tests that did not pass, with their errors."""
    found = {test: outcomes.get(test, "was not run") for test in expected}
    return {test: error for test, error in found.items() if error}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.upstream.run", description=__doc__)
    parser.add_argument("--record", action="store_true", help="list what passes unpatched")
    parser.add_argument("match", nargs="*", help="only tests whose id contains one of these")
    options = parser.parse_args(arguments)
    project = load_project()
    release = project.release()
    tests = unpack_tests(project, release)
    if options.record:
        outcomes: dict[str, str] = {}
        package = unpatched_package(project, release)
        for name in FILES:
            print(f"running {name} on the unpatched release", flush=True)
            outcomes |= run_tests(tests, [name], package)
        record(outcomes, release.version)
        print(f"{len(read_list(PASSING))} of {len(outcomes)} tests pass on the unpatched release")
        return 0
    expected = [
        test
        for test in read_list(PASSING)
        if not options.match or any(part in test for part in options.match)
    ]
    print(f"running {len(expected)} tests of vLLM {release.version} on the fork", flush=True)
    failed = broken(expected, run_tests(tests, expected))
    for test, error in failed.items():
        print(f"{test}\n    {error}")
    print(f"{len(expected) - len(failed)} of {len(expected)} pass")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
