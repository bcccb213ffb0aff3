# SPDX-License-Identifier: Apache-2.0
"""Reading upstream.toml."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fork.toy import Toy, borrow
from tools.fork.project import ForkError, load_project


def test_reads_releases(toy: Toy) -> None:
    project = toy.project
    assert list(project.releases) == ["1.0", "2.0"]
    assert project.release().version == "1.0"
    assert project.release("2.0").wheel("cpu", "x86_64").file == "vllm_toy-2.0-cp38-abi3-any.whl"


def test_unknown_release_and_wheel(toy: Toy) -> None:
    with pytest.raises(ForkError, match=r"3\.0 is not in upstream\.toml; it lists: 1\.0, 2\.0"):
        toy.project.release("3.0")
    with pytest.raises(
        ForkError, match=r"no cuda wheel of 1\.0 for aarch64; it has: cpu on x86_64"
    ):
        toy.project.release().wheel("cuda", "aarch64")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("fork = 3", "fork = 0", "fork = 0; .* at least 1"),
        ('default = "1.0"', 'default = "4.0"', "default = '4.0'; .* 1.0, 2.0"),
        ('sha256 = "', 'sha256 = "x', "sha256 = 'x.*64 lower-case"),
        ('package = "vllm"', "package = 1", "archive.package = 1; .* string"),
        ("wheels.cpu", "wheels.tpu", "wheels.tpu: device has to be one of"),
        ("fork = 3", "fork = ", "is not TOML"),
    ],
)
def test_errors_name_the_field(toy: Toy, old: str, new: str, message: str) -> None:
    path = toy.project.root / "upstream.toml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(ForkError, match=message):
        load_project(toy.project.root)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ForkError, match=r"upstream\.toml does not exist"):
        load_project(tmp_path)


def test_a_release_may_borrow_compiled_modules(toy: Toy) -> None:
    assert toy.project.compiled(toy.project.release("2.0")).version == "2.0"
    project = borrow(toy, '"1.0"')
    assert project.compiled(project.release("2.0")).version == "1.0"
    assert project.compiled(project.release("1.0")).version == "1.0"


@pytest.mark.parametrize(
    ("value", "own_wheel", "message"),
    [
        ('"3.0"', False, r"2\.0\.binaries = '3\.0'; it has to be one of 1\.0, which have a CPU"),
        ('"2.0"', False, r"2\.0\.binaries = '2\.0'; it has to be one of 1\.0"),
        ("1", False, r"2\.0\.binaries = 1; it has to be one of 1\.0"),
        ('"1.0"', True, r"2\.0\.binaries = '1\.0'; it has to be left out, since there is a CPU"),
    ],
)
def test_binaries_are_those_of_another_release(
    toy: Toy, value: str, own_wheel: bool, message: str
) -> None:
    with pytest.raises(ForkError, match=message):
        borrow(toy, value, own_wheel)
