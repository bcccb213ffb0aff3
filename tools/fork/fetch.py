# SPDX-License-Identifier: Apache-2.0
"""The cache of upstream files, each checked against the hash that upstream.toml pins."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pooch
from tqdm import tqdm

from tools.fork import registry
from tools.fork.errors import ForkError
from tools.fork.project import Artifact, Project


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    return str(pooch.file_hash(str(path), alg="sha256"))


def fetch(project: Project, artifact: Artifact, source: str | None = None) -> Path:
    """Path of ``artifact`` in the cache, downloaded if it is not there, verified in any case.

    source: a folder, or its ``file:`` address, to copy the file from instead of downloading it; the
        environment variable UNISON_SOURCE is its default.
    Raises ForkError when the file cannot be had, or when its hash is not the pinned one.
    """
    path = project.cache / artifact.file
    if path.exists():
        # pooch would download it again; but it may be upstream.toml that is wrong.
        if (found := sha256(path)) != artifact.sha256:
            raise ForkError(_mismatch(artifact, str(path), found))
        return path
    source = source or os.environ.get("UNISON_SOURCE")
    found = ""

    def obtain(url: str, target: str, _: object) -> None:
        nonlocal found
        _obtain(artifact, Path(target), source)
        found = sha256(Path(target))

    # Downloaded beside, checked and renamed, so that no other process sees half of it.
    pooch.get_logger().disabled = True
    try:
        pooch.retrieve(
            artifact.file,
            f"sha256:{artifact.sha256}",
            fname=artifact.file,
            path=project.cache,
            downloader=obtain,
        )
    except ValueError as error:
        raise ForkError(_mismatch(artifact, path.name, found)) from error
    return path


def _obtain(artifact: Artifact, target: Path, source: str | None) -> None:
    print(f"fetching {artifact.file}", file=sys.stderr)
    if source is not None:
        address = urlsplit(source)
        folder = Path(unquote(address.path)) if address.scheme == "file" else Path(source)
        origin = folder / artifact.file
        if not origin.is_file():
            raise ForkError(f"{origin} does not exist")
        shutil.copyfile(origin, target)
        return
    bar = tqdm(desc=artifact.file, unit="B", unit_scale=True, disable=None)
    with target.open("wb") as file, bar:

        def write(chunk: bytes) -> None:
            file.write(chunk)
            bar.update(len(chunk))

        registry.download(artifact, write, bar.reset)


def _mismatch(artifact: Artifact, name: str, found: str) -> str:
    return (
        f"{name} is not the file that upstream.toml pins:\n"
        f"  pinned sha256 {artifact.sha256}\n"
        f"  found  sha256 {found}\n"
        "delete it to download it again, or correct upstream.toml if the new hash is meant"
    )
