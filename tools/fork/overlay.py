# SPDX-License-Identifier: Apache-2.0
"""The overlay: the files that the fork adds to the package, linked or copied into a tree."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from tools.fork.project import ForkError

GENERATED = ("__pycache__", ".mypy_cache", ".ruff_cache", "*.pyc", "*.pyo", "*.so")
"""Names of what lies in the overlay and is no part of it."""


def files(overlay: Path, upstream: Collection[str]) -> list[str]:
    """All files of the overlay, sorted, as POSIX paths from the folder above (``vllm/...``).

    Raises ForkError when one has the path of an upstream file or folder, or lies below a file.
    """
    found = []
    for path in overlay.rglob("*"):
        name = path.relative_to(overlay.parent)
        generated = any(fnmatch(path.name, pattern) for pattern in GENERATED)
        if not generated and path.is_file() and set(GENERATED).isdisjoint(name.parts):
            found.append(name.as_posix())
    occupied = set(upstream)
    taken = occupied | _folders(upstream)
    clashes = [f for f in found if f in taken or not occupied.isdisjoint(_folders([f]))]
    if clashes:
        names = "\n  ".join(sorted(clashes))
        raise ForkError(
            f"the overlay may only add files, but these exist upstream:\n  {names}\n"
            "change them with a patch, or give them another name"
        )
    return sorted(found)


def link_points(overlay: Path, upstream: Collection[str]) -> list[str]:
    """The topmost paths of the overlay that upstream does not have, sorted. Raises as ``files``.

    A folder that is wholly the fork's is one link, so that files added to it later are there
    without another step; a file inside one of upstream's folders is a link of its own.
    """
    folders = _folders(upstream)
    points = set()
    for file in files(overlay, upstream):
        outermost = [*map(str, reversed(PurePosixPath(file).parents)), file]
        points.add(next(path for path in outermost if path not in folders))
    return sorted(points)


def _folders(files: Iterable[str]) -> set[str]:
    return {".", *(str(parent) for file in files for parent in PurePosixPath(file).parents)}


def link(source: Path, target: Path) -> None:
    """Make ``target`` a relative symbolic link to ``source``, replacing what is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    remove(target)
    target.symlink_to(os.path.relpath(source, target.parent))


def copy(source: Path, target: Path) -> None:
    """Copy a file with its permission bits, or a folder but for GENERATED, over what is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    remove(target)
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns(*GENERATED))
    else:
        shutil.copy(source, target)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
