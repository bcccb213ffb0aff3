# SPDX-License-Identifier: Apache-2.0
"""The patched tree of a release: a git repository, a commit for upstream and one for each patch."""

from __future__ import annotations

import re
import sys
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tools.fork import overlay
from tools.fork.fetch import fetch
from tools.fork.git import git, operation_in_progress, run, tracked, uncommitted, unfinished
from tools.fork.patches import contents, format_patches, patch_files, update_readme, write_patches
from tools.fork.project import PACKAGE, ForkError, Project, Release

# Refs of the tree.
UPSTREAM = "refs/tags/upstream"  # the unchanged release
APPLIED = "refs/unison/applied"  # the last commit that came from, or went to, the patch files
BACKUP = "refs/unison/backup"  # what a forced apply or rebase replaced
OTHER = "refs/unison/other"  # the release whose patches are replayed on this one, and its upstream
OTHER_UPSTREAM = "refs/unison/other-upstream"

VERSION_FILE = f"{PACKAGE}/_version.py"
"""Written by upstream's build, and so by ours; no part of the source."""


def import_objects(tree: Path, other: Path) -> None:
    """Make another tree's commits known in ``tree``: merges need what the patches start from."""
    refs = [f"+HEAD:{OTHER}", f"+{UPSTREAM}:{OTHER_UPSTREAM}"]
    git(tree, "fetch", "--quiet", "--no-tags", str(other), *refs)


_FILTER: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}


def ensure_upstream(project: Project, release: Release) -> Path:
    """The tree of ``release`` with at least its upstream commit, built when it is missing."""
    tree, pinned = project.tree(release), release.archive
    description = f"vLLM {release.version}\n\nSource archive {pinned.file}\nsha256 {pinned.sha256}"
    if (tree / ".git").is_dir() and git(tree, "tag", "--list", "upstream"):
        if git(tree, "log", "-1", "--format=%B", UPSTREAM).strip() == description:
            return tree
        raise ForkError(f"{tree} was built from another archive than upstream.toml's; delete it")
    archive = fetch(project, pinned)
    print(f"building {tree} from {archive.name}", file=sys.stderr)
    # Built aside and renamed, so that an interrupted build leaves nothing that looks complete.
    partial = tree.with_name(f".{tree.name}.partial")
    overlay.remove(partial)
    try:
        with tarfile.open(archive) as tar:
            # Python 3.11.2, Debian 12's, has no filters yet; the archive's digest was checked.
            tar.extractall(partial, **_FILTER)
        (top,) = partial.iterdir()
        git(top, "init", "--quiet")
        git(top, "add", "--all", "--force")
        git(top, "rm", "--quiet", "--force", "--ignore-unmatch", VERSION_FILE)
        git(top, "commit", "--quiet", "--allow-empty", "-m", description)
        git(top, "tag", "upstream")
        git(top, "update-ref", APPLIED, "HEAD")
        overlay.remove(tree)
        top.replace(tree)
    finally:
        overlay.remove(partial)
    return tree


def apply(project: Project, release: Release, *, copy: bool = False, force: bool = False) -> Path:
    """Bring the tree of ``release`` to upstream plus all patches, and put the overlay into it.

    copy: copy the overlay instead of linking it.
    force: start over even where that loses work (the old tip is kept as BACKUP).
    Raises ForkError when that would lose work, when a patch does not apply (the tree is left for
    repair), or when the overlay collides with upstream.
    """
    tree = ensure_upstream(project, release)
    if force:
        discard(tree)
    elif state := operation_in_progress(tree):
        raise ForkError(f"{_repair(tree, state)}; or start over with 'apply --force'")
    if force or not _is_exported(project, release):
        if not force and (lost := unexported(project, release)):
            raise ForkError(f"{lost}; commit and export it, or drop it with 'apply --force'")
        git(tree, "reset", "--quiet", "--hard", UPSTREAM)
        apply_patches(tree, patch_files(project.patches(release)))
        git(tree, "update-ref", APPLIED, "HEAD")
    place_overlay(project, release, copy=copy)
    return tree


def unexported(project: Project, release: Release) -> str | None:
    """In words, what the tree of ``release`` has that building it anew would lose, or None."""
    tree = project.tree(release)
    if not (tree / ".git").is_dir():
        return None
    if waits := unfinished(tree):
        return waits
    applied = git(tree, "rev-parse", "HEAD") == git(tree, "rev-parse", APPLIED)
    if applied or _is_exported(project, release):
        return None
    return f"{tree} has commits that are not exported"


def _is_exported(project: Project, release: Release) -> bool:
    return contents(project.patches(release)) == format_patches(project.tree(release), UPSTREAM)


def _repair(tree: Path, state: str) -> str:
    return (
        f"{tree} is left for repair: look for conflict markers and .rej files, fix the files, "
        f"'git add' them, run 'git {state} --continue' there until it is done, and export it"
    )


def discard(tree: Path) -> None:
    """Reset a tree to upstream, whatever state it is in; its tip is kept as BACKUP."""
    if state := operation_in_progress(tree):
        run(tree, state, "--abort")
    git(tree, "update-ref", BACKUP, "HEAD")
    git(tree, "reset", "--quiet", "--hard", UPSTREAM)


def apply_patches(tree: Path, patches: list[Path]) -> None:
    """Commit each patch on top of HEAD with ``git am``, whose complaints the user sees.

    Raises ForkError when one does not apply. The tree is left in the middle of ``git am``, with
    conflict markers where a merge was possible and ``.rej`` files where it was not.
    """
    command = ["am", "--3way", "--keep", "--no-scissors", "--keep-cr", "--whitespace=nowarn"]
    command += [str(patch.absolute()) for patch in patches]
    if not patches or run(tree, *command, show=True).returncode == 0:
        return
    if operation_in_progress(tree) != "am":
        raise ForkError(f"git am could not start in {tree}")
    if not git(tree, "ls-files", "--unmerged"):
        failed = git(tree, "am", "--show-current-patch=diff")
        run(tree, "apply", "--reject", "--whitespace=nowarn", input=failed, show=True)
    raise ForkError(f"a patch does not apply (see above); {_repair(tree, 'am')}")


def place_overlay(project: Project, release: Release, *, copy: bool = False) -> list[str]:
    """Link (or copy) the overlay into the tree; return the paths of the links.

    Raises ForkError when an overlay file has the path of an upstream file.
    """
    tree = project.tree(release)
    points = overlay.link_points(project.overlay, tracked(tree))
    sources = {point: project.root / point for point in points}
    place(tree, "overlay", sources, overlay.copy if copy else overlay.link)
    return points


def place(
    tree: Path,
    section: str,
    sources: Mapping[str, Path],
    put: Callable[[Path, Path], None] = overlay.link,
) -> None:
    """Put files or folders, by path, into a tree, in place of those put there under ``section``
    before ("overlay" or "wheel"), and tell git to ignore them.
    """
    exclude = tree / ".git" / "info" / "exclude"
    text = exclude.read_text(encoding="utf-8") if exclude.exists() else ""
    # By section, the paths below a comment that names it.
    sections = dict(re.findall(r"^# added by: (\w+)\n((?:/.*\n)*)", text, re.MULTILINE))
    for line in sections.get(section, "").splitlines():
        overlay.remove(tree / re.sub(r"\\(.)", r"\1", line[1:]))
    for name, source in sources.items():
        put(source, tree / name)
    escaped = (re.sub(r"([*?[\\])", r"\\\1", name) for name in sorted(sources))
    sections[section] = "".join(f"/{name}\n" for name in escaped)
    text = "".join(f"# added by: {name}\n{paths}" for name, paths in sections.items())
    exclude.parent.mkdir(exist_ok=True)
    exclude.write_text(f"*.rej\n*.orig\n{text}", encoding="utf-8")


def export(project: Project, release: Release) -> tuple[list[str], list[str]]:
    """Write the commits after upstream as patches; return the names written, and those removed.

    Raises ForkError when a repair is unfinished, or when a commit holds a file of the overlay.
    """
    tree = project.tree(release)
    if not (tree / ".git").is_dir():
        raise ForkError(f"{tree} does not exist; 'python -m tools.fork apply' builds it")
    if state := operation_in_progress(tree):
        raise ForkError(f"in the middle of 'git {state}': {_repair(tree, state)}")
    if merges := git(tree, "rev-list", "--merges", f"{UPSTREAM}..HEAD"):
        raise ForkError(f"{tree} has a merge, {merges[:12]}, which no patch can hold; rebase it")
    overlay.files(project.overlay, tracked(tree))
    if changed := uncommitted(tree):
        print(f"warning: not committed, so not exported: {', '.join(changed)}", file=sys.stderr)
    result = write_patches(project.patches(release), format_patches(tree, UPSTREAM))
    update_readme(project)
    git(tree, "update-ref", APPLIED, "HEAD")
    return result


def left_out(project: Project, release: Release) -> list[str]:
    """Patches of the default release that the tree of another has no commit of: git drops those
    that change nothing there, and others may have been skipped by hand.
    """
    there = {name.partition("-")[2] for name in format_patches(project.tree(release), UPSTREAM)}
    names = [path.name for path in patch_files(project.patches(project.release()))]
    return [name for name in names if name.partition("-")[2] not in there]


def rebase(project: Project, release: Release, *, onto: Release, force: bool = False) -> Path:
    """Replay the patches of ``release`` on ``onto`` with ``git rebase``, whose output is shown.

    Returns the tree of ``onto``, which holds the finished result, overlay included.
    Raises ForkError when ``onto`` already has patches and ``force`` is not set, and at the first
    conflict: the tree is left for repair, in the middle of the rebase.
    """
    if release.version == onto.version:
        raise ForkError(f"the patches are on {onto.version} already; name another release")
    origin = apply(project, release)
    tree, folder = ensure_upstream(project, onto), project.patches(onto)
    commits = git(tree, "rev-list", f"{UPSTREAM}..HEAD")
    if not force and (patch_files(folder) or commits or operation_in_progress(tree)):
        raise ForkError(
            f"{onto.version} has patches already, in {folder} or in {tree}; "
            "replace them with 'rebase --force'"
        )
    discard(tree)
    import_objects(tree, origin)
    git(tree, "checkout", "--quiet", "-B", "main", OTHER)
    result = run(tree, "rebase", "--merge", "--onto", UPSTREAM, OTHER_UPSTREAM, show=True)
    if result.returncode:
        if operation_in_progress(tree) != "rebase":
            raise ForkError(f"git rebase could not start in {tree}")
        verb = f"python -m tools.fork export --release {onto.version}"
        raise ForkError(f"a patch conflicts (see above); {_repair(tree, 'rebase')}: '{verb}'")
    place_overlay(project, onto)
    return tree
