# SPDX-License-Identifier: Apache-2.0
"""A small text model, whose scheduler these tests drive."""

import pytest

from tests.scheduler.driver import write_config
from tests.support.threads import one_thread  # noqa: F401


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder with the config.json of a small text model."""
    return str(write_config(tmp_path_factory.mktemp("text-model")))
