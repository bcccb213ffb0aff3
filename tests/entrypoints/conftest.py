# SPDX-License-Identifier: Apache-2.0
"""One server of a small random model, and one of the packaged model, for all tests of the HTTP
interface."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.entrypoints.server import (
    Server,
    free_port,
    running_server,
    wait_until_up,
    write_model,
    write_voices,
)
from tests.examples.snippets import ALL, plain_environment
from tests.support.otlp import Collector, collecting


@pytest.fixture(scope="session")
def served_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model."""
    return write_model(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="session")
def voices(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of voices that the server was given."""
    return write_voices(tmp_path_factory.mktemp("recorded") / "voices")


@pytest.fixture(scope="session")
def collector() -> Iterator[Collector]:
    """What the server sends its spans to."""
    with collecting() as made:
        yield made


@pytest.fixture(scope="package")
def server(
    served_model: Path,
    voices: Path,
    collector: Collector,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """The server; every test leaves it serving."""
    folder = tmp_path_factory.mktemp("server")
    voiced = ("--voice-alias", "alloy=joe", "--voices", str(voices))
    traced = ("--otlp-traces-endpoint", collector.address)
    with running_server(served_model, folder, *voiced, *traced) as running:
        yield running


@pytest.fixture(scope="package")
def packaged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the packaged model, started by the README's command but for the port."""
    shell = next(s.text for s in ALL if s.page == "README.md" and s.test == "server")
    program, *serve = shell.splitlines()[0].split()
    assert [program, *serve] == ["vllm", "serve", "unison-default"]
    folder, port = tmp_path_factory.mktemp("packaged"), free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", *serve, "--port", str(port)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=plain_environment(), stdout=log, stderr=log
        )
    running = Server(f"http://127.0.0.1:{port}", process, folder / "log")
    try:
        wait_until_up(running)
        yield running
    finally:
        process.terminate()
        process.wait(60)
