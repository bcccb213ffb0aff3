# SPDX-License-Identifier: Apache-2.0
"""Whether every patch applies to every release and says why, whether all of them stay small, and
whether the overlay still fits what upstream has.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tools.fork import overlay, reviewed
from tools.fork.git import git, lines, run, tracked
from tools.fork.patches import LIMIT, count, has_body, patch_files, read_patch, update_readme
from tools.fork.project import ForkError, Project, Release
from tools.fork.tree import UPSTREAM, ensure_upstream, import_objects
from tools.fork.upstream_api import Modules, Overlay


@dataclass(frozen=True)
class Report:
    """Of one release: added lines of each patch that was tried, and what is wrong, if anything."""

    version: str
    counts: dict[str, int]
    problems: list[str] = field(default_factory=list)


def check(project: Project, *, record: bool = False) -> list[Report]:
    """Try the patches on every release that upstream.toml lists, without touching any working tree.

    A release without patches of its own gets the default's, merged three ways as by ``rebase``.
    record: note first that upstream's code that the overlay builds on has been reviewed.
    """
    upstream = {
        version: _modules(ensure_upstream(project, release), UPSTREAM)
        for version, release in project.releases.items()
    }
    ours = _overlay(project)
    if record:
        reviewed.record(project, ours, upstream)
    reports = [
        _check_release(project, release, ours, upstream) for release in project.releases.values()
    ]
    if not update_readme(project, write=False):
        problem = "the counts in patches/README.md are not those of the patches; run export"
        reports[0].problems.append(problem)
    return reports


def _check_release(
    project: Project, release: Release, ours: Overlay, upstream: Mapping[str, Modules]
) -> Report:
    tree = project.tree(release)
    patches = patch_files(project.patches(release))
    borrowed = not patches and release.version != project.default
    if borrowed:
        patches = patch_files(project.patches(project.release()))
        import_objects(tree, ensure_upstream(project, project.release()))
    report = Report(release.version, count(patches[0].parent) if patches else {})
    bare = [] if borrowed else [patch for patch in patches if not has_body(read_patch(patch))]
    why = "its message has only a subject; add a body that says why"
    report.problems.extend(f"{patch.name}: {why}" for patch in bare)
    with tempfile.TemporaryDirectory() as scratch:
        env = {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
        git(tree, "read-tree", UPSTREAM, env=env)
        applied = True
        for patch in patches:
            apply = ["apply", "--cached", "--whitespace=nowarn", str(patch.absolute())]
            result = run(tree, *apply, env=env)
            if result.returncode == 0:
                continue
            if not borrowed or run(tree, *apply, "--3way", env=env).returncode:
                report.problems.append(f"{patch.name}: {result.stderr.strip()}")
                applied = False
                break  # the patches after it build on it
        files = lines(git(tree, "ls-files", "--cached", "-z", env=env))
        patched = git(tree, "write-tree", env=env).strip() if applied else UPSTREAM
    try:
        overlay.files(project.overlay, files)
    except ForkError as error:
        report.problems.append(str(error))
    if (added := sum(report.counts.values())) > LIMIT:
        report.problems.append(f"the patches add {added} lines; the limit is {LIMIT}")
    if applied:
        modules = _modules(tree, patched)
        report.problems.extend(ours.missing_names(modules))
        report.problems.extend(ours.missing_methods(modules))
        read = reviewed.read_reviewed(project)
        report.problems.extend(reviewed.unreviewed(read, ours, release.version, upstream))
    return report


def _modules(tree: Path, revision: str) -> Modules:
    """The modules of a commit or a tree of git's."""
    return Modules(tracked(tree, revision), lambda path: git(tree, "show", f"{revision}:{path}"))


def _overlay(project: Project) -> Overlay:
    def read(path: str) -> str:
        return (project.root / path).read_text(encoding="utf-8")

    return Overlay(Modules(overlay.files(project.overlay, ()), read))
