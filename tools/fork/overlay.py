# SPDX-License-Identifier: Apache-2.0
"""The overlay: the files that the fork adds to the package, linked or copied into a tree."""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath

from tools.fork.errors import ForkError

_GENERATED_FOLDERS = {"__pycache__", ".mypy_cache", ".ruff_cache"}
_GENERATED_SUFFIXES = {".pyc", ".pyo", ".so"}


def overlay_files(overlay: Path) -> list[str]:
    """All files of the overlay, as POSIX paths below the folder that contains it (``vllm/...``),
    sorted.
    """
    if not overlay.is_dir():
        return []
    found = []
    for folder, folders, files in os.walk(overlay):
        folders[:] = [name for name in folders if name not in _GENERATED_FOLDERS]
        for name in files:
            path = Path(folder, name)
            if path.suffix not in _GENERATED_SUFFIXES:
                found.append(path.relative_to(overlay.parent).as_posix())
    return sorted(found)


def refuse_collisions(files: Iterable[str], upstream: Collection[str]) -> None:
    """Raise ForkError when an overlay file has the path of an upstream file or folder, or lies
    below an upstream file.
    """
    occupied = set(upstream)
    folders = {str(parent) for path in occupied for parent in PurePosixPath(path).parents}
    clashes = []
    for file in files:
        below = [str(parent) for parent in PurePosixPath(file).parents if str(parent) in occupied]
        if file in occupied or file in folders or below:
            clashes.append(file)
    if clashes:
        names = "\n  ".join(clashes)
        raise ForkError(
            f"the overlay may only add files, but these exist upstream:\n  {names}\n"
            "change them with a patch, or give them another name"
        )


def link_points(files: Iterable[str], upstream: Iterable[str]) -> list[str]:
    """The topmost paths of the overlay that upstream does not have.

    A folder that is wholly the fork's is one link, so that files added to it later are there
    without another step; a file inside one of upstream's folders is a link of its own.
    """
    folders = {str(parent) for path in upstream for parent in PurePosixPath(path).parents}
    points = set()
    for file in files:
        path = PurePosixPath(file)
        outermost = [str(parent) for parent in reversed(path.parents) if str(parent) not in folders]
        points.add(outermost[0] if outermost else file)
    return sorted(points)


def place_link(target: Path, link: Path) -> None:
    """Make ``link`` a relative symbolic link to ``target``, replacing what is there."""
    link.parent.mkdir(parents=True, exist_ok=True)
    remove(link)
    link.symlink_to(os.path.relpath(target, link.parent))


def copy_file(source: Path, target: Path) -> None:
    """Copy a file with its permission bits, making folders as needed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    remove(target)
    shutil.copy(source, target)


def remove(path: Path) -> None:
    """Delete a file, a link or a folder, if it is there."""
    if path.is_symlink() or path.is_file():
        path.unlink()
    elif path.is_dir():
        shutil.rmtree(path)
