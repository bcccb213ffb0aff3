# SPDX-License-Identifier: Apache-2.0
"""Fetching: what is in the cache is what upstream.toml pins, or there is an error."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fork.toy import Toy
from tools.fork.cli import main
from tools.fork.fetch import fetch, sha256
from tools.fork.project import Artifact, ForkError, load_project


@pytest.mark.parametrize("as_address", [False, True])
def test_copies_from_a_folder_or_its_address(
    toy: Toy, monkeypatch: pytest.MonkeyPatch, as_address: bool
) -> None:
    monkeypatch.delenv("UNISON_SOURCE")
    archive = toy.project.release().archive
    source = toy.source.as_uri() if as_address else str(toy.source)
    path = fetch(load_project(toy.project.root, source), archive)
    assert path.parent == toy.project.cache
    assert path.read_bytes() == (toy.source / archive.file).read_bytes()


def test_downloads_through_the_configuration_of_pip(
    toy: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A links page stands for an index: pip reads it from its own configuration.
    monkeypatch.delenv("UNISON_SOURCE")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(toy.source))
    archive = toy.project.release().archive
    assert sha256(fetch(toy.project, archive)) == archive.sha256


def test_file_that_no_index_lists(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UNISON_SOURCE")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(toy.source))
    with pytest.raises(ForkError, match=r"lists vllm-9\.9\.tar\.gz of vllm"):
        fetch(toy.project, Artifact("vllm", "vllm-9.9.tar.gz", "0" * 64))


def test_mismatch_names_the_file_and_both_hashes(toy: Toy) -> None:
    archive = toy.project.release().archive
    (toy.source / archive.file).write_bytes(b"something else")
    found = sha256(toy.source / archive.file)
    with pytest.raises(ForkError) as caught:
        fetch(toy.project, archive)
    for part in (archive.file, archive.sha256, found):
        assert part in str(caught.value)
    assert list(toy.project.cache.iterdir()) == []


def test_cached_file_is_verified_too(toy: Toy) -> None:
    archive = toy.project.release().archive
    path = fetch(toy.project, archive)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ForkError, match=archive.sha256):
        fetch(toy.project, archive)


def test_cache_can_be_moved(
    toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNISON_CACHE", str(tmp_path / "elsewhere"))
    assert main(["--root", str(toy.project.root), "fetch", "--device", "none"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "elsewhere" / "vllm-1.0.tar.gz")
