# SPDX-License-Identifier: Apache-2.0
"""What deploy/try_in_root.py reads of the Containerfile; that it works takes Debian's packages."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

DEPLOY = Path(__file__).parents[2] / "deploy"


@pytest.fixture(scope="module")
def roots() -> ModuleType:
    spec = importlib.util.spec_from_file_location("try_in_root", DEPLOY / "try_in_root.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_stages_are_read_in_order(roots: ModuleType) -> None:
    text = (
        "# Of nothing.\nFROM debian AS a\nRUN one \\\n    && two\n# RUN three\nWORKDIR /srv\n\n"
        'FROM a AS b\nENV A=1 B="2 3"\nCMD ["c"]\n'
    )
    found = roots.read_stages(text)
    assert list(found) == ["a", "b"]
    assert found["a"].base == "debian" and found["b"].base == "a"
    assert [(name, " ".join(step.split())) for name, step in found["a"].steps] == [
        ("RUN", "one && two"),
        ("WORKDIR", "/srv"),
    ]
    assert found["b"].steps == [("ENV", 'A=1 B="2 3"'), ("CMD", '["c"]')]
    with pytest.raises(ValueError, match="FROM must be 'IMAGE AS NAME', not 'debian'"):
        roots.read_stages("FROM debian\n")


def test_the_image_is_made_of_the_wheel_that_make_makes(roots: ModuleType) -> None:
    stages = roots.read_stages((DEPLOY / "Containerfile").read_text(encoding="utf-8"))
    assert list(stages) == ["base", "wheel-cpu", "cpu", "wheel-cuda", "cuda"]
    for kind in ("cpu", "cuda"):
        made = [step for name, step in stages[f"wheel-{kind}"].steps if name == "RUN"]
        assert made[-1] == 'make wheel TORCH="$TORCH"'
        runs = [step for name, step in stages[kind].steps if name == "RUN"]
        assert any(f"--mount=type=bind,from=wheel-{kind}," in step for step in runs)
        assert ("CMD", '["vllm", "serve", "unison-default"]') in stages[kind].steps
        # The server does not run as root.
        assert ("USER", "unison") in stages[kind].steps
