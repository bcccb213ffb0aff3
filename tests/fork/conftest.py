# SPDX-License-Identifier: Apache-2.0
"""Toy repositories for the tests of tools.fork."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.fork.toy import ENGINE, RELEASES, Toy, make_toy
from tools.fork.tree import apply, export


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Toy]:
    """Makes a toy repository from releases (the standard two by default)."""
    monkeypatch.delenv("UNISON_CACHE", raising=False)
    source = tmp_path / "source"
    monkeypatch.setenv("UNISON_SOURCE", str(source))

    def build(releases: Mapping[str, Mapping[str, str]] = RELEASES) -> Toy:
        return make_toy(tmp_path / "repository", source, releases)

    return build


@pytest.fixture
def toy(make: Callable[..., Toy]) -> Toy:
    """The standard toy repository."""
    return make()


@pytest.fixture
def patched(toy: Toy) -> Toy:
    """The standard toy repository with two exported patches, "Speak" and "Number"."""
    release = toy.project.release()
    apply(toy.project, release)
    toy.commit("Speak", {"vllm/engine.py": "from vllm.speech import SPEECH\nNAME = 'fork'\n"})
    toy.commit(
        "Number the steps\n\nA body of two lines,\nkept as it is.",
        {"vllm/steps.txt": ENGINE.replace("step 3\n", "step 3\nstep 3.5\n")},
    )
    export(toy.project, release)
    return toy
