# SPDX-License-Identifier: Apache-2.0
"""Comparing the overlay with a release's Python: what a patch that applies does not show."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.fork.toy import Toy, make_toy
from tools.fork.check import check
from tools.fork.cli import main
from tools.fork.reviewed import path_of, read_reviewed
from tools.fork.upstream_api import ABSENT, Modules, Overlay, code, fingerprint, lookup

OUTPUTS = """
import enum
from abc import ABC, abstractmethod
from vllm.base import *
class Output(ABC):
    @abstractmethod
    def get(self): ...
class Ready(Output):
    def get(self): return 1
"""
NEW_OUTPUTS = OUTPUTS.replace(
    "class Ready", "    @abstractmethod\n    def get_other(self): ...\nclass Ready"
)
UPSTREAM = {
    "vllm/__init__.py": "from .outputs import Output as Exported\n",
    "vllm/base.py": "if True:\n    try:\n        LIMIT: int = 3\n    finally: ...\n",
    "vllm/outputs.py": OUTPUTS,
    "vllm/lazy.py": 'def __getattr__(name):\n    return {"later": 1}[name]\n',
    "vllm/sub/deep.py": "",
}
OURS = {
    "vllm/speech/__init__.py": "",
    "vllm/speech/output.py": """
from vllm import Exported, base
from vllm.outputs import LIMIT, Output, enum
from vllm.lazy import later
from vllm.speech.other import mine
from vllm.speech import other
import vllm.sub.deep
class Ours(Output):
    def get(self): return 2
class Renamed(Exported):
    def get(self): return 3
""",
    "vllm/speech/other.py": "mine = 1\n",
}


def modules(files: Mapping[str, str]) -> Modules:
    return Modules(files, lambda path: files[path])


def overlay(output: str | None = None) -> Overlay:
    return Overlay(modules(OURS | ({"vllm/speech/output.py": output} if output else {})))


def test_what_is_there_is_found_in_every_way_that_python_finds_it() -> None:
    assert overlay().missing_names(modules(UPSTREAM)) == []
    assert overlay().missing_methods(modules(UPSTREAM)) == []


@pytest.mark.parametrize(
    ("path", "text", "problem"),
    [
        ("vllm/base.py", "", "output.py:3: vllm.outputs has no LIMIT"),
        ("vllm/lazy.py", "def __getattr__(name): ...", "output.py:4: vllm.lazy has no later"),
        ("vllm/sub/deep.py", None, "output.py:7: vllm.sub has no deep"),
        ("vllm/__init__.py", "", "output.py:2: vllm has no Exported"),
    ],
)
def test_a_name_that_is_gone(path: str, text: str | None, problem: str) -> None:
    changed = {name: content for name, content in UPSTREAM.items() if name != path}
    changed |= {} if text is None else {path: text}
    assert overlay().missing_names(modules(changed)) == [f"vllm/speech/{problem}"]


def test_a_new_abstract_method_is_missing_in_every_class_that_derives_from_it() -> None:
    upstream = modules(UPSTREAM | {"vllm/outputs.py": NEW_OUTPUTS})
    assert overlay().missing_methods(upstream) == [
        "vllm/speech/output.py:8: Ours has no get_other, which is abstract in vllm.outputs.Output",
        "vllm/speech/output.py:10: Renamed has no get_other, which is abstract in vllm.Exported",
    ]
    there = OURS["vllm/speech/output.py"].replace(
        "    def get(", "    def get_other(self): ...\n    def get("
    )
    assert overlay(there).missing_methods(upstream) == []


def test_a_class_between_may_give_the_method() -> None:
    derived = "from vllm.outputs import Ready\nclass Ours(Ready): ...\n"
    assert overlay(derived).missing_methods(modules(UPSTREAM)) == []


def test_overridden_methods_are_found() -> None:
    names = {"vllm:Exported.get", "vllm.outputs:Output.get"}
    assert overlay().overridden(modules(UPSTREAM)) == names


def test_a_fingerprint_is_of_the_code() -> None:
    def of(text: str, name: str = "f") -> str:
        return fingerprint(lookup(modules({"vllm/m.py": text}), f"vllm.m:{name}"))

    plain = of("def f(a):\n    return a\n")
    assert of('def f(a):\n    """Says."""\n    return (a)  # why\n') == plain
    assert of("def f(a, b=1):\n    return a\n") != plain
    assert of("") == ABSENT
    fields = of("class C:\n    a: int = 1\n    def f(self): ...\n", "C")
    assert of("class C:\n    a: int = 1\n    def g(self): ...\n", "C") == fields
    assert of("class C:\n    a: int = 1\n    b: int = 2\n", "C") != fields
    inherited = "class A:\n    def f(self): return 1\nclass B(A): ...\n"
    assert of(inherited, "B.f") == of(inherited, "A.f") != ABSENT


def test_code_without_docstrings_is_python() -> None:
    node = lookup(modules({"vllm/m.py": 'def f():\n    """Only says."""\n'}), "vllm.m:f")
    assert node is not None
    assert code(node) == "def f():\n    pass\n"


# check on a toy repository whose overlay mirrors one function and overrides one method.

BASE = {
    "vllm/__init__.py": "",
    "vllm/plan.py": "def plan(n):\n    return n\n",
    "vllm/manager.py": "class Manager:\n    def free(self):\n        return 1\n",
}


@pytest.fixture
def reviewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Toy:
    """Releases 2.0 (the newest) and 1.0, which agree, reviewed."""
    monkeypatch.delenv("UNISON_CACHE", raising=False)
    monkeypatch.setenv("UNISON_SOURCE", str(tmp_path / "source"))
    newer = BASE | {"vllm/plan.py": "def plan(n):\n    return n + 1\n"}
    releases = {"2.0": newer, "1.0": BASE}
    toy = make_toy(tmp_path / "repository", tmp_path / "source", releases)
    toy.write(
        {
            "vllm/speech/manager.py": "from vllm.manager import Manager\n"
            "class Groups(Manager):\n    def free(self):\n        return 2\n",
            "patches/reviewed.toml": '[mirrored]\n"vllm.plan:plan" = "speech plans so"\n',
        }
    )
    assert main(["--root", str(toy.project.root), "check", "--reviewed"]) == 0
    return toy


def test_what_was_reviewed_passes_and_is_kept_with_what_was_written_by_hand(reviewed: Toy) -> None:
    assert [report.problems for report in check(reviewed.project)] == [[], []]
    record = read_reviewed(reviewed.project)
    assert record.mirrored == {"vllm.plan:plan": "speech plans so"}
    assert {name: list(found) for name, found in record.hashes.items()} == {
        "vllm.manager:Manager.free": ["1.0"],  # the same in both
        "vllm.plan:plan": ["1.0", "2.0"],
    }
    before = path_of(reviewed.project).read_bytes()
    assert main(["--root", str(reviewed.project.root), "check", "--reviewed"]) == 0
    assert path_of(reviewed.project).read_bytes() == before


def test_a_change_that_nobody_reviewed_is_shown(
    reviewed: Toy, capsys: pytest.CaptureFixture[str]
) -> None:
    path = path_of(reviewed.project)
    newer = read_reviewed(reviewed.project).hashes["vllm.plan:plan"]["2.0"]
    path.write_text(path.read_text().replace(f', "2.0" = "{newer}"', ""))
    assert main(["--root", str(reviewed.project.root), "check"]) == 1
    error = capsys.readouterr().err
    assert "error: 2.0: vllm.plan:plan changed since its review:\n--- 1.0\n+++ 2.0\n" in error
    assert "-    return n\n+    return n + 1\n" in error
    assert error.count("error:") == 1


def test_what_the_overlay_overrides_since_then_is_not_reviewed(reviewed: Toy) -> None:
    path = path_of(reviewed.project)
    kept = [line for line in path.read_text().splitlines() if "Manager.free" not in line]
    path.write_text("\n".join(kept))
    problem = "vllm.manager:Manager.free: the overlay builds on it, and no review is recorded"
    assert [report.problems for report in check(reviewed.project)] == [[problem], [problem]]
