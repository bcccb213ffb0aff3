# SPDX-License-Identifier: Apache-2.0
"""The patched tree of a release: a git repository with one commit for upstream and one for each
patch.
"""

from __future__ import annotations

import re
import sys
import tarfile
from collections.abc import Iterable
from pathlib import Path

from tools.fork import overlay
from tools.fork.counts import update_readme
from tools.fork.errors import ForkError
from tools.fork.fetch import fetch
from tools.fork.git import git, git_directory, lines, run
from tools.fork.patches import format_patches, patch_files, same_patches, why_not, write_patches
from tools.fork.project import PACKAGE, Project, Release

UPSTREAM = "refs/tags/upstream"
"""The commit of the unchanged release."""

APPLIED = "refs/unison/applied"
"""The last commit that came from, or went to, the patch files: nothing up to here would be lost by
starting over.
"""

BACKUP = "refs/unison/backup"
"""What a forced ``apply`` replaced."""

OTHER = "refs/unison/other"
OTHER_UPSTREAM = "refs/unison/other-upstream"
"""Tip and upstream commit of the release whose patches are replayed on this one."""

VERSION_FILE = f"{PACKAGE}/_version.py"
"""Written by upstream's build, and so by ours; no part of the source."""


def import_objects(tree: Path, other: Path) -> None:
    """Make the commits of another tree known in ``tree``, so that merges find the versions that
    patches start from.
    """
    git(
        tree,
        "fetch",
        "--quiet",
        "--no-tags",
        str(other),
        f"+HEAD:{OTHER}",
        f"+{UPSTREAM}:{OTHER_UPSTREAM}",
    )


def tracked(tree: Path, revision: str = "HEAD") -> list[str]:
    """Paths of all files of a commit."""
    return lines(git(tree, "ls-tree", "-r", "-z", "--name-only", revision))


def ensure_upstream(project: Project, release: Release, source: str | None = None) -> Path:
    """The tree of ``release`` with at least its upstream commit; built from the source archive when
    missing.
    """
    tree = project.tree(release)
    if (tree / ".git").is_dir() and git(tree, "tag", "--list", "upstream").strip():
        wanted = _description(release)
        if git(tree, "log", "-1", "--format=%B", UPSTREAM).strip() == wanted:
            return tree
        raise ForkError(
            f"{tree} was built from another archive than upstream.toml names; delete it"
        )
    archive = fetch(project, release.archive, source)
    print(f"building {tree} from {archive.name}", file=sys.stderr)
    # Built aside and renamed, so that an interrupted build leaves nothing that looks complete.
    partial = tree.with_name(f".{tree.name}.partial")
    overlay.remove(partial)
    partial.mkdir(parents=True)
    try:
        _extract(archive, partial)
        git(partial, "init", "--quiet")
        git(partial, "add", "--all", "--force")
        git(partial, "rm", "--quiet", "--force", "--ignore-unmatch", VERSION_FILE)
        git(partial, "commit", "--quiet", "--allow-empty", "-m", _description(release))
        git(partial, "tag", "upstream")
        git(partial, "update-ref", APPLIED, "HEAD")
        overlay.remove(tree)
        partial.replace(tree)
    finally:
        overlay.remove(partial)
    return tree


def _description(release: Release) -> str:
    archive = release.archive
    return f"vLLM {release.version}\n\nSource archive {archive.file}\nsha256 {archive.sha256}"


def _extract(archive: Path, target: Path) -> None:
    """Unpack a source archive without its top folder."""
    try:
        with tarfile.open(archive) as tar:
            tar.extractall(target, filter="data")
    except (tarfile.TarError, OSError) as error:
        raise ForkError(f"{archive} cannot be unpacked: {error}") from error
    tops = list(target.iterdir())
    if len(tops) != 1 or not tops[0].is_dir():
        raise ForkError(
            f"{archive} has {len(tops)} entries at its top; a source archive has one folder"
        )
    top = tops[0].rename(target / ".unpacked")
    for entry in list(top.iterdir()):
        entry.rename(target / entry.name)
    top.rmdir()


def operation_in_progress(tree: Path) -> str | None:
    """Which of git's multi-step commands is waiting in ``tree`` for a repair: "am", "rebase" or
    None.
    """
    folder = git_directory(tree)
    if (folder / "rebase-apply" / "applying").exists():
        return "am"
    if (folder / "rebase-apply").exists() or (folder / "rebase-merge").exists():
        return "rebase"
    return None


def uncommitted(tree: Path) -> list[str]:
    """Upstream files with changes that no commit holds, and new files that git does not ignore."""
    status = lines(
        git(tree, "status", "--porcelain", "-z", "--untracked-files=normal", "--no-renames")
    )
    return [entry[3:] for entry in status]


def apply(
    project: Project,
    release: Release,
    *,
    copy: bool = False,
    force: bool = False,
    source: str | None = None,
) -> Path:
    """Bring the tree of ``release`` to upstream plus all patches, and put the overlay into it.

    copy: copy the overlay's files instead of linking them.
    force: start over even where the tree has commits or changes that are not exported (the old tip
        is kept as BACKUP).
    Raises ForkError when that would lose work, when a patch does not apply (the tree is left for
    repair), or when the overlay collides with upstream.
    """
    tree = ensure_upstream(project, release, source)
    folder = project.patches(release)
    if force:
        _discard(tree)
    elif state := operation_in_progress(tree):
        raise ForkError(
            f"{tree} waits for a repair: fix the files, 'git add' them and run "
            f"'git {state} --continue' there, then 'python -m tools.fork export'; or start over "
            "with 'apply --force'"
        )
    if force or not same_patches(folder, format_patches(tree, UPSTREAM)):
        lost = None if force else unexported(project, release)
        if lost:
            raise ForkError(
                f"{lost}; commit and run 'python -m tools.fork export', or drop it with "
                "'apply --force'"
            )
        git(tree, "reset", "--quiet", "--hard", UPSTREAM)
        apply_patches(tree, patch_files(folder))
        git(tree, "update-ref", APPLIED, "HEAD")
    place_overlay(project, release, copy=copy)
    return tree


def unexported(project: Project, release: Release) -> str | None:
    """In words, what the tree of ``release`` holds that building it anew would lose; None when
    there is nothing.
    """
    tree = project.tree(release)
    if not (tree / ".git").is_dir():
        return None
    if state := operation_in_progress(tree):
        return f"{tree} is in the middle of 'git {state}'"
    if changed := uncommitted(tree):
        return f"{tree} has changes that are not committed: {', '.join(changed[:5])}"
    if git(tree, "rev-parse", "HEAD") == git(tree, "rev-parse", APPLIED):
        return None
    if same_patches(project.patches(release), format_patches(tree, UPSTREAM)):
        return None
    return f"{tree} has commits that are not exported"


def _discard(tree: Path) -> None:
    if state := operation_in_progress(tree):
        run(tree, state, "--abort")
    git(tree, "update-ref", BACKUP, "HEAD")
    git(tree, "reset", "--quiet", "--hard", UPSTREAM)


def apply_patches(tree: Path, patches: list[Path]) -> None:
    """Commit each patch on top of HEAD, with a three-way merge where the context moved.

    Raises ForkError naming the patch, the file and the hunk that does not apply. The tree is left
    in the middle of ``git am``, with conflict markers where a merge was possible and ``.rej`` files
    where it was not.
    """
    if not patches:
        return
    names = [str(patch.absolute()) for patch in patches]
    options = ["--3way", "--keep", "--no-scissors", "--keep-cr", "--quiet", "--whitespace=nowarn"]
    result = run(tree, "am", *options, *names)
    if result.returncode == 0:
        return
    if operation_in_progress(tree) != "am":
        raise ForkError(
            f"git am could not start in {tree}:\n{(result.stdout + result.stderr).strip()}"
        )
    state = git_directory(tree) / "rebase-apply"
    patch = patches[int((state / "next").read_text()) - 1]
    reasons = _reasons(tree, patch)
    conflicts = lines(git(tree, "diff", "--name-only", "--diff-filter=U", "-z"))
    if conflicts:
        left = f"conflict markers are in: {', '.join(conflicts)}"
    else:
        run(tree, "apply", "--reject", "--whitespace=nowarn", str(patch.absolute()))
        left = "what did not apply is in .rej files beside the files"
    details = "\n  ".join(reasons or [(result.stdout + result.stderr).strip()])
    raise ForkError(
        f"{patch.name} does not apply to {tree}:\n  {details}\n"
        f"The tree is left for repair ({left}). Fix the files, 'git add' them, run 'git am "
        "--continue' there, "
        "then 'python -m tools.fork export'."
    )


def _reasons(tree: Path, patch: Path) -> list[str]:
    """Failing hunks of ``patch`` against HEAD, whatever state the index is in."""
    index = git_directory(tree) / "unison-index"
    env = {"GIT_INDEX_FILE": str(index)}
    try:
        git(tree, "read-tree", "HEAD", env=env)
        return why_not(tree, patch.absolute(), env)
    finally:
        index.unlink(missing_ok=True)


def place_overlay(project: Project, release: Release, *, copy: bool = False) -> list[str]:
    """Link (or copy) the overlay into the tree; return the paths that git was told to ignore.

    Raises ForkError when an overlay file has the path of an upstream file.
    """
    tree = project.tree(release)
    upstream = tracked(tree)
    files = overlay.overlay_files(project.overlay)
    overlay.refuse_collisions(files, upstream)
    points = overlay.link_points(files, upstream)
    remove_added(tree, "overlay")
    for path in files if copy else points:
        if copy:
            overlay.copy_file(project.root / path, tree / path)
        else:
            overlay.place_link(project.root / path, tree / path)
    exclude(tree, "overlay", points)
    return points


def exclude(tree: Path, section: str, paths: Iterable[str]) -> None:
    """Tell git to ignore these paths of the tree, in place of those that were listed under
    ``section`` before.

    section: who added the paths: "overlay" or "wheel".
    """
    sections = _excluded_sections(tree) | {section: sorted(paths)}
    text = "*.rej\n*.orig\n"
    for name, entries in sections.items():
        text += f"{_SECTION}{name}\n" + "".join(f"/{_escaped(path)}\n" for path in entries)
    target = git_directory(tree) / "info" / "exclude"
    target.parent.mkdir(exist_ok=True)
    target.write_text(text, encoding="utf-8")


_SECTION = "# added by: "


def _escaped(path: str) -> str:
    return "".join(f"\\{char}" if char in "*?[\\" else char for char in path)


def _excluded_sections(tree: Path) -> dict[str, list[str]]:
    target = git_directory(tree) / "info" / "exclude"
    sections: dict[str, list[str]] = {}
    entries: list[str] = []
    for line in target.read_text(encoding="utf-8").splitlines() if target.exists() else []:
        if line.startswith(_SECTION):
            entries = sections.setdefault(line.removeprefix(_SECTION), [])
        elif line.startswith("/"):
            entries.append(re.sub(r"\\(.)", r"\1", line[1:]))
    return sections


def remove_added(tree: Path, section: str) -> None:
    """Delete from the tree the paths that ``exclude`` was given for ``section``."""
    for path in _excluded_sections(tree).get(section, []):
        overlay.remove(tree / path)


def export(project: Project, release: Release) -> tuple[list[str], list[str]]:
    """Write the commits after upstream as patches; return the names of those written and of those
    removed.

    Raises ForkError when a repair is unfinished, or when a commit holds a file of the overlay.
    """
    tree = project.tree(release)
    if not (tree / ".git").is_dir():
        raise ForkError(f"{tree} does not exist; 'python -m tools.fork apply' builds it")
    if state := operation_in_progress(tree):
        raise ForkError(
            f"{tree} is in the middle of 'git {state}'; finish the repair with 'git {state} "
            "--continue'"
        )
    merges = git(tree, "rev-list", "--merges", f"{UPSTREAM}..HEAD").split()
    if merges:
        raise ForkError(
            f"{tree} has merge commits ({merges[0][:12]}), which no patch can hold; rebase them"
        )
    overlay.refuse_collisions(overlay.overlay_files(project.overlay), tracked(tree))
    changed = uncommitted(tree)
    if changed:
        print(f"warning: not committed, so not exported: {', '.join(changed)}", file=sys.stderr)
    result = write_patches(project.patches(release), format_patches(tree, UPSTREAM))
    update_readme(project)
    git(tree, "update-ref", APPLIED, "HEAD")
    return result
