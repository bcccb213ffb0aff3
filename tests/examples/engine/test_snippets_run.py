# SPDX-License-Identifier: Apache-2.0
"""The pages' snippets, run: most with an engine in this process, some as their reader would.

Those that need a server run in tests/entrypoints, where such servers are up.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import runpy
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile

from tests.examples.snippets import ALL, Snippet, plain_environment
from tests.support.ahead import StartedAhead, selected
from tests.support.demonstration import SENTENCE

pytestmark = pytest.mark.slow


Running = tuple["subprocess.Popen[str]", Path]
"""A snippet's process and its folder."""


def name_of(snippet: Snippet) -> str:
    return f"{snippet.page}:{snippet.line}"


def comments_with_results(snippet: Snippet) -> list[str]:
    """What a snippet's comments say that it prints."""
    found = re.findall(r"^# (\d.*)|  # (Context.*)", snippet.text, re.MULTILINE)
    return ["".join(line) for line in found]


def errors_of(page: str) -> list[tuple[str, str]]:
    """Expressions and the errors that a page shows for them."""
    shown = "\n".join(s.text for s in ALL if s.page == page and s.test == "errors")
    return re.findall(r"^>>> (.+)\n(\w+: .+)$", shown, re.MULTILINE)


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Any]]:
    """The engines that a snippet makes, in this process and gone with the test."""
    import vllm
    from vllm.distributed import cleanup_dist_env_and_memory

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    monkeypatch.chdir(tmp_path)
    make, made = vllm.LLM, list[Any]()

    def recorded(*arguments: Any, **options: Any) -> Any:
        made.append(make(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(vllm, "LLM", recorded)
    yield made
    while made:
        made.pop().llm_engine.engine_core.shutdown()
    gc.collect()
    cleanup_dist_env_and_memory()


@pytest.mark.parametrize("snippet", [s for s in ALL if s.test == "here"], ids=name_of)
def test_a_python_snippet_runs_as_it_stands(
    snippet: Snippet, engines: list[Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """And then the errors are raised that its page shows."""
    (tmp_path / "snippet.py").write_text(snippet.text, encoding="utf-8")
    names = runpy.run_path("snippet.py", run_name="__main__")
    printed = capfd.readouterr().out
    for line in comments_with_results(snippet):
        assert line in printed
    assert len(engines) == snippet.text.count("LLM(")
    is_first = snippet == next(s for s in ALL if s.page == snippet.page and s.language == "python")
    for code, error in errors_of(snippet.page) if is_first else ():
        with pytest.raises(ValueError) as caught:
            eval(code, names)
        assert f"ValueError: {caught.value}" == error
    names.clear()


def test_the_errors_shown_are_tried() -> None:
    """Each page with errors has a first snippet that is run here."""
    pages = {snippet.page for snippet in ALL if snippet.test == "errors"}
    assert pages == {"docs/api.md", "docs/guidance.md"}
    for page in pages:
        assert len(errors_of(page)) >= 2
        first = next(s for s in ALL if s.page == page and s.language == "python")
        assert first.test == "here"


@contextlib.contextmanager
def started(snippet: Snippet, folder: Path) -> Iterator[Running]:
    """A snippet as a process, which is what a reader would make of it."""
    command = [sys.executable, "snippet.py"]
    if snippet.language == "sh":
        main = f"{sys.executable} -m vllm.entrypoints.cli.main"
        command = ["bash", "-euc", f'vllm() {{ {main} "$@"; }}\n{snippet.text}']
    # In a file: engines of processes of their own import it again.
    (folder / "snippet.py").write_text(snippet.text, encoding="utf-8")
    with (folder / "out").open("w") as out, (folder / "err").open("w") as err:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=plain_environment(),
            stdout=out,
            stderr=err,
            text=True,
            start_new_session=True,
        )
    try:
        yield process, folder
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def processes(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartedAhead[Snippet, Running]]:
    def start(snippet: Snippet) -> contextlib.AbstractContextManager[Running]:
        return started(snippet, tmp_path_factory.mktemp("snippet"))

    ahead = StartedAhead(selected(request, "alone"), start)
    yield ahead
    ahead.close()


def alone_or_model(snippet: Snippet) -> Any:
    """A test's parameter; what the packaged model's commands do, tests/entrypoints shows too."""
    marks = [pytest.mark.nightly] if snippet.test == "model" else []
    return pytest.param(snippet, marks=marks, id=name_of(snippet))


@pytest.mark.parametrize("alone", [alone_or_model(s) for s in ALL if s.test in ("alone", "model")])
def test_a_snippet_runs_as_its_reader_runs_it(
    alone: Snippet, processes: StartedAhead[Snippet, Running], request: pytest.FixtureRequest
) -> None:
    with processes.take(request.node.nodeid) as (process, folder):
        assert process.wait() == 0, (folder / "err").read_text()[-3000:]
    printed = (folder / "out").read_text()
    for line in comments_with_results(alone):
        assert line in printed
    if alone.page == "README.md":
        samples, rate = soundfile.read(folder / "out.wav")
        assert rate == 16000 and len(samples) >= 20 * 320
    if alone.page == "README.md" or alone.test == "model":
        assert printed.rstrip().endswith(SENTENCE)
