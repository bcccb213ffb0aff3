# SPDX-License-Identifier: Apache-2.0
"""The cache of upstream files, each checked against the hash that upstream.toml pins."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

from tools.fork import registry
from tools.fork.errors import ForkError
from tools.fork.progress import ProgressBar
from tools.fork.project import Artifact, Project


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(project: Project, artifact: Artifact, source: str | None = None) -> Path:
    """Path of ``artifact`` in the cache, downloaded if it is not there, verified in any case.

    source: a folder, or its ``file:`` address, to copy the file from instead of downloading it; the
        environment variable
        UNISON_SOURCE is its default.
    Raises ForkError when the file cannot be had, or when its hash is not the pinned one.
    """
    path = project.cache / artifact.file
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            _obtain(artifact, partial, source or os.environ.get("UNISON_SOURCE"))
            _verify(artifact, partial, path.name)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    else:
        _verify(artifact, path, str(path))
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
    with target.open("wb") as file, ProgressBar(artifact.file, None) as bar:

        def write(chunk: bytes) -> None:
            file.write(chunk)
            bar.update(len(chunk))

        def size(total: int) -> None:
            bar.total = total

        registry.download(artifact, write, size)


def _verify(artifact: Artifact, path: Path, name: str) -> None:
    found = sha256(path)
    if found != artifact.sha256:
        raise ForkError(
            f"{name} is not the file that upstream.toml pins:\n"
            f"  pinned sha256 {artifact.sha256}\n"
            f"  found  sha256 {found}\n"
            "delete it to download it again, or correct upstream.toml if the new hash is meant"
        )
