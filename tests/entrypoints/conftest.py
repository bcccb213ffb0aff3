# SPDX-License-Identifier: Apache-2.0
"""One model and one server for all tests of the HTTP interface."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.entrypoints.server import Server, running_server, write_model


@pytest.fixture(scope="session")
def served_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the model."""
    return write_model(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="package")
def server(served_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server; every test leaves it serving."""
    folder = tmp_path_factory.mktemp("server")
    with running_server(served_model, folder, "--voice-alias", "alloy=rms") as running:
        yield running
