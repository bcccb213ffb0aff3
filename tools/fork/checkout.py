# SPDX-License-Identifier: Apache-2.0
"""Turning a user's own upstream checkout into the fork, to be built from source as upstream
documents.

The patches become commits, and one more adds the overlay, the extension's sources and the two lines
that make upstream's build compile it. VLLM_VERSION_OVERRIDE names the version.
"""

from __future__ import annotations

from pathlib import Path

from tools.fork import overlay
from tools.fork.git import git, run, tracked, unfinished
from tools.fork.patches import patch_files
from tools.fork.project import ForkError, Project, Release
from tools.fork.tree import apply_patches

SOURCES = "csrc/unison"
"""Where the extension's sources lie in a checkout."""

# By file: the line after which ours is inserted, and our line.
_BUILD_LINES = {
    "CMakeLists.txt": ("find_package(Torch REQUIRED)", f"add_subdirectory({SOURCES})"),
    "setup.py": ("ext_modules = []", 'ext_modules.append(CMakeExtension(name="vllm._unison_C"))'),
}


def apply_to_checkout(project: Project, release: Release, checkout: Path) -> bool:
    """Commit the patches, the overlay and the extension to an upstream checkout at ``release``.

    Returns whether upstream's build was extended to compile the extension; it is not without
    sources, or where its build files lack the lines that ours follow.
    Raises ForkError when ``checkout`` is not ready, or when a patch does not apply (the checkout is
    then in the middle of ``git am``).
    """
    _refuse_unready(release, checkout)
    overlay.files(project.overlay, tracked(checkout))
    apply_patches(checkout, patch_files(project.patches(release)))
    points = overlay.link_points(project.overlay, tracked(checkout))
    for name in points:
        overlay.copy(project.root / name, checkout / name)
    extended = _add_extension(project, checkout)
    added = [*points, *([SOURCES, *_BUILD_LINES] if extended else [])]
    if added:
        git(checkout, "add", "--force", "--", *added)
        git(checkout, "commit", "--quiet", "-m", "Add Unison's overlay and extension")
    return extended


def _refuse_unready(release: Release, checkout: Path) -> None:
    query = ["rev-parse", "--verify", "--quiet"]
    head = run(checkout, *query, "HEAD")
    if head.returncode:
        raise ForkError(f"{checkout} is not a git checkout with a commit")
    top = Path(git(checkout, "rev-parse", "--show-toplevel").strip())
    if top.resolve() != checkout.resolve():
        raise ForkError(f"{checkout} is inside the checkout {top}; name that")
    if waits := unfinished(checkout):
        raise ForkError(f"{waits}; finish or drop that first")
    tag = f"v{release.version}"
    if run(checkout, *query, f"refs/tags/{tag}^{{commit}}").stdout not in ("", head.stdout):
        raise ForkError(f"{checkout} is not at {tag}; run 'git checkout {tag}' there first")


def _add_extension(project: Project, checkout: Path) -> bool:
    texts = {}
    for name, (anchor, line) in _BUILD_LINES.items():
        path = checkout / name
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if not any(project.csrc.rglob("*.cpp")) or text.splitlines().count(anchor) != 1:
            return False
        texts[path] = text.replace(f"{anchor}\n", f"{anchor}\n{line}\n", 1)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    overlay.copy(project.csrc, checkout / SOURCES)
    overlay.copy(project.root / "CMakeLists.txt", checkout / SOURCES / "CMakeLists.txt")
    return True
