# SPDX-License-Identifier: Apache-2.0
"""Moving the patches to another release."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tools.fork.errors import ForkError
from tools.fork.git import git, lines, run
from tools.fork.patches import patch_files
from tools.fork.project import Project, Release
from tools.fork.tree import (
    BACKUP,
    OTHER,
    OTHER_UPSTREAM,
    UPSTREAM,
    apply,
    ensure_upstream,
    import_objects,
    operation_in_progress,
    place_overlay,
)


@dataclass(frozen=True)
class Conflict:
    """A patch that does not merge on its own, and the files it conflicts in."""

    subject: str
    files: tuple[str, ...]


def rebase(
    project: Project,
    release: Release,
    *,
    onto: Release,
    force: bool = False,
    source: str | None = None,
) -> list[Conflict]:
    """Replay the patches of ``release`` on ``onto``; return the patches that conflict, all of them,
    in order.

    When there are none, the tree of ``onto`` holds the finished result, overlay included. Otherwise
    the tree is left at the first conflict, in the middle of ``git rebase``, with conflict markers
    in the files.
    Raises ForkError when the tree of ``onto`` already has commits and ``force`` is not set.
    """
    if release.version == onto.version:
        raise ForkError(
            f"the patches are on {onto.version} already; name another release of upstream.toml"
        )
    origin = apply(project, release, source=source)
    tree = ensure_upstream(project, onto, source)
    occupied = (
        patch_files(project.patches(onto)) or git(tree, "rev-list", f"{UPSTREAM}..HEAD").split()
    )
    if (occupied or operation_in_progress(tree)) and not force:
        raise ForkError(
            f"{onto.version} has patches already, in {project.patches(onto)} or in {tree}; "
            "replace them with 'rebase --force'"
        )
    if state := operation_in_progress(tree):
        run(tree, state, "--abort")
    git(tree, "update-ref", BACKUP, "HEAD")
    git(tree, "reset", "--quiet", "--hard", UPSTREAM)
    import_objects(tree, origin)
    conflicts = forecast(tree)
    git(tree, "checkout", "--quiet", "-B", "main", OTHER)
    result = run(tree, "rebase", "--merge", "--onto", UPSTREAM, OTHER_UPSTREAM)
    if result.returncode == 0:
        place_overlay(project, onto)
        return []
    if operation_in_progress(tree) != "rebase":
        raise ForkError(
            f"git rebase could not start in {tree}:\n{(result.stdout + result.stderr).strip()}"
        )
    return conflicts or [_stopped_at(tree)]


def forecast(tree: Path) -> list[Conflict]:
    """The commits OTHER_UPSTREAM..OTHER that do not merge onto UPSTREAM on their own.

    Each is merged on top of the one before it, conflict markers and all, so that one conflict does
    not hide the next. Empty with a git older than 2.38, which cannot merge without a working tree.
    """
    conflicts = []
    current = git(tree, "rev-parse", f"{UPSTREAM}^{{tree}}").strip()
    for commit in git(tree, "rev-list", "--reverse", f"{OTHER_UPSTREAM}..{OTHER}").split():
        parent = git(tree, "rev-parse", f"{commit}^").strip()
        # The patch's own parent as the only common ancestor: what differs from it is the patch, and
        # nothing else.
        ours = git(tree, "commit-tree", current, "-p", parent, "-m", "replayed so far").strip()
        result = run(
            tree, "merge-tree", "--write-tree", "-z", "--name-only", "--no-messages", ours, commit
        )
        if result.returncode not in (0, 1):
            return []
        current, *files = lines(result.stdout)
        if result.returncode == 1:
            conflicts.append(Conflict(_subject(tree, commit), tuple(files)))
    return conflicts


def _stopped_at(tree: Path) -> Conflict:
    files = lines(git(tree, "diff", "--name-only", "--diff-filter=U", "-z"))
    return Conflict(_subject(tree, "REBASE_HEAD"), tuple(files))


def _subject(tree: Path, commit: str) -> str:
    return git(tree, "log", "-1", "--format=%s", commit).strip()
