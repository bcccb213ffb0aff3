# SPDX-License-Identifier: Apache-2.0
"""Whether every patch applies to every release, and whether all of them stay small."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tools.fork import counts, overlay
from tools.fork.errors import ForkError
from tools.fork.git import git, lines, run
from tools.fork.patches import patch_files, why_not
from tools.fork.project import Project, Release
from tools.fork.tree import UPSTREAM, ensure_upstream, import_objects


@dataclass(frozen=True)
class Report:
    """Result of checking one release.

    counts: (patch, added lines) of the patches that were tried.
    problems: what is wrong, a line each; empty when all is well.
    """

    version: str
    counts: list[tuple[str, int]]
    problems: list[str] = field(default_factory=list)


def check(project: Project, source: str | None = None) -> list[Report]:
    """Try the patches on every release that upstream.toml lists, without touching any working tree.

    A release without patches of its own gets the default release's, merged three ways as ``rebase``
    would.
    """
    reports = [_check_release(project, release, source) for release in project.releases.values()]
    if not counts.readme_is_current(project):
        reports[0].problems.append(
            "the counts in patches/README.md are not those of the patches; run export"
        )
    return reports


def _check_release(project: Project, release: Release, source: str | None) -> Report:
    tree = ensure_upstream(project, release, source)
    folder = project.patches(release)
    borrowed = not patch_files(folder) and release.version != project.default
    if borrowed:
        folder = project.patches(project.release())
        import_objects(tree, ensure_upstream(project, project.release(), source))
    report = Report(release.version, counts.count(folder))
    with tempfile.TemporaryDirectory() as scratch:
        env = {"GIT_INDEX_FILE": str(Path(scratch) / "index")}
        git(tree, "read-tree", UPSTREAM, env=env)
        for patch in patch_files(folder):
            before = git(tree, "write-tree", env=env).strip()
            options = ["--cached", "--whitespace=nowarn", *(["--3way"] if borrowed else [])]
            result = run(tree, "apply", *options, str(patch.absolute()), env=env)
            if result.returncode:
                git(tree, "read-tree", before, env=env)
                reasons = why_not(tree, patch.absolute(), env) or [result.stderr.strip()]
                report.problems.extend(f"{patch.name}: {reason}" for reason in reasons)
                break  # the patches after it build on it
        files = lines(git(tree, "ls-files", "--cached", "-z", env=env))
    try:
        overlay.refuse_collisions(overlay.overlay_files(project.overlay), files)
    except ForkError as error:
        report.problems.append(str(error))
    added = counts.total(report.counts)
    if added > counts.LIMIT:
        report.problems.append(f"the patches add {added} lines; the limit is {counts.LIMIT}")
    return report
