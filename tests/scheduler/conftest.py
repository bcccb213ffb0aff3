# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of guidance that need no engine."""

from collections.abc import Iterator

import pytest
import torch

from tests.guidance.driver import write_config


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """The tensors of these tests are too small to gain from threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def text_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder with the config.json of a small text model."""
    return str(write_config(tmp_path_factory.mktemp("text-model")))
