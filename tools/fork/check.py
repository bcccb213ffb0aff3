# SPDX-License-Identifier: Apache-2.0
"""Whether every patch applies to every release and says why, and whether all of them stay small."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from tools.fork import overlay
from tools.fork.git import git, lines, run
from tools.fork.patches import LIMIT, count, has_body, patch_files, read_patch, update_readme
from tools.fork.project import ForkError, Project, Release
from tools.fork.tree import UPSTREAM, ensure_upstream, import_objects


@dataclass(frozen=True)
class Report:
    """Of one release: added lines of each patch that was tried, and what is wrong, if anything."""

    version: str
    counts: dict[str, int]
    problems: list[str] = field(default_factory=list)


def check(project: Project) -> list[Report]:
    """Try the patches on every release that upstream.toml lists, without touching any working tree.

    A release without patches of its own gets the default's, merged three ways as by ``rebase``.
    """
    reports = [_check_release(project, release) for release in project.releases.values()]
    if not update_readme(project, write=False):
        problem = "the counts in patches/README.md are not those of the patches; run export"
        reports[0].problems.append(problem)
    return reports


def _check_release(project: Project, release: Release) -> Report:
    tree = ensure_upstream(project, release)
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
        for patch in patches:
            apply = ["apply", "--cached", "--whitespace=nowarn", str(patch.absolute())]
            result = run(tree, *apply, env=env)
            if result.returncode == 0:
                continue
            if not borrowed or run(tree, *apply, "--3way", env=env).returncode:
                report.problems.append(f"{patch.name}: {result.stderr.strip()}")
                break  # the patches after it build on it
        files = lines(git(tree, "ls-files", "--cached", "-z", env=env))
    try:
        overlay.files(project.overlay, files)
    except ForkError as error:
        report.problems.append(str(error))
    if (added := sum(report.counts.values())) > LIMIT:
        report.problems.append(f"the patches add {added} lines; the limit is {LIMIT}")
    return report
