# SPDX-License-Identifier: Apache-2.0
"""Turning a user's own upstream checkout into the fork, to be built from source as upstream
documents.

The patches become commits, and one more commit adds the overlay, the sources of our extension (as
``csrc/unison``), and the two lines that make upstream's build compile it: a target in
CMakeLists.txt and its name in setup.py. After that upstream's own instructions build everything;
VLLM_VERSION_OVERRIDE names the version.
"""

from __future__ import annotations

from pathlib import Path

from tools.fork import overlay
from tools.fork.errors import ForkError
from tools.fork.git import git, run
from tools.fork.patches import patch_files
from tools.fork.project import Project, Release
from tools.fork.tree import apply_patches, operation_in_progress, tracked, uncommitted

SOURCES = "csrc/unison"
"""Where the extension's sources lie in a checkout."""

# (file, the line after which ours is inserted, our line)
_BUILD_LINES = (
    ("CMakeLists.txt", "find_package(Torch REQUIRED)", f"add_subdirectory({SOURCES})"),
    ("setup.py", "ext_modules = []", 'ext_modules.append(CMakeExtension(name="vllm._unison_C"))'),
)


def apply_to_checkout(project: Project, release: Release, checkout: Path) -> bool:
    """Commit the patches, the overlay and the extension to an upstream checkout at ``release``.

    Returns whether upstream's build was extended to compile the extension; it is not where the
    lines that ours follow are not in the build files.
    Raises ForkError when ``checkout`` is no git checkout, has uncommitted changes, is tagged as
    another release, or when a patch does not apply (the checkout is then in the middle of ``git
    am``).
    """
    if run(checkout, "rev-parse", "--verify", "--quiet", "HEAD").returncode:
        raise ForkError(f"{checkout} is not a git checkout with a commit")
    top = Path(git(checkout, "rev-parse", "--show-toplevel").strip())
    if top.resolve() != checkout.resolve():
        raise ForkError(f"{checkout} is inside the checkout {top}; name that")
    if state := operation_in_progress(checkout):
        raise ForkError(f"{checkout} is in the middle of 'git {state}'; finish or abort it first")
    if changed := uncommitted(checkout):
        raise ForkError(f"{checkout} has changes that are not committed: {', '.join(changed[:5])}")
    _refuse_other_release(release, checkout)
    files = overlay.overlay_files(project.overlay)
    overlay.refuse_collisions(files, tracked(checkout))
    apply_patches(checkout, patch_files(project.patches(release)))
    overlay.refuse_collisions(files, tracked(checkout))
    for name in files:
        overlay.copy_file(project.root / name, checkout / name)
    extended = _add_extension(project, checkout)
    added = [*files, *([SOURCES, *(name for name, _, _ in _BUILD_LINES)] if extended else [])]
    if added:
        git(checkout, "add", "--force", "--", *added)
        git(checkout, "commit", "--quiet", "-m", "Add Unison's overlay and extension")
    return extended


def _refuse_other_release(release: Release, checkout: Path) -> None:
    wanted = run(
        checkout, "rev-parse", "--verify", "--quiet", f"refs/tags/v{release.version}^{{commit}}"
    )
    head = git(checkout, "rev-parse", "HEAD").strip()
    if wanted.returncode == 0 and wanted.stdout.strip() != head:
        raise ForkError(
            f"{checkout} is not at v{release.version}; run 'git checkout v{release.version}' "
            "there first"
        )


def _add_extension(project: Project, checkout: Path) -> bool:
    sources = (
        sorted(path for path in project.csrc.rglob("*") if path.is_file())
        if project.csrc.is_dir()
        else []
    )
    texts = {}
    for name, anchor, line in _BUILD_LINES:
        path = checkout / name
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        if not sources or text.splitlines().count(anchor) != 1:
            return False
        texts[path] = text.replace(f"{anchor}\n", f"{anchor}\n{line}\n", 1)
    for path, text in texts.items():
        path.write_text(text, encoding="utf-8")
    for path in sources:
        overlay.copy_file(path, checkout / SOURCES / path.relative_to(project.csrc))
    overlay.copy_file(project.root / "CMakeLists.txt", checkout / SOURCES / "CMakeLists.txt")
    return True
