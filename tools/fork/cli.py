# SPDX-License-Identifier: Apache-2.0
"""The verbs of ``python -m tools.fork``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.fork import package
from tools.fork.check import check
from tools.fork.checkout import apply_to_checkout
from tools.fork.counts import LIMIT, count, total
from tools.fork.errors import ForkError
from tools.fork.extension import build_cuda_objects
from tools.fork.fetch import fetch
from tools.fork.project import DEVICES, Project, load_project
from tools.fork.rebase import rebase
from tools.fork.tree import apply, export, place_overlay


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return the exit status: 0 for success, 1 for a failure, which is explained on
    standard error.
    """
    options = _parser().parse_args(arguments)
    try:
        project = load_project(options.root)
        status: int = options.run(project, options)
    except ForkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.fork", description="The life of the patch set."
    )
    parser.add_argument("--root", type=Path, help="repository to work on (default: this one)")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def verb(name: str, run: object, help: str, *, release: bool = True) -> argparse.ArgumentParser:
        sub = verbs.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run)
        if release:
            sub.add_argument(
                "--release", help="release of upstream.toml (default: the one it names)"
            )
        sub.add_argument(
            "--source",
            help="folder or file: address to copy upstream's files from (default: $UNISON_SOURCE)",
        )
        return sub

    sub = verb("fetch", _fetch, "download upstream's source archive and wheel, and check them")
    sub.add_argument(
        "--device",
        choices=[*DEVICES, "none"],
        help="whose wheel (default: as the build would choose)",
    )

    sub = verb(
        "apply", _apply, "build the patched tree, or turn an upstream checkout into the fork"
    )
    sub.add_argument("--copy", action="store_true", help="copy the overlay instead of linking it")
    sub.add_argument(
        "--force", action="store_true", help="drop what the tree has that is not exported"
    )
    sub.add_argument(
        "--tree", type=Path, help="an upstream git checkout to turn into the fork instead"
    )

    verb("link", _link, "link overlay files added since the last apply into the tree")
    verb("export", _export, "write the tree's commits back to patches/")

    sub = verb("rebase", _rebase, "replay the patches on another release")
    sub.add_argument("onto", metavar="RELEASE", help="release of upstream.toml to move to")
    sub.add_argument("--force", action="store_true", help="replace the patches that RELEASE has")

    verb("check", _check, "try every patch on every release, and count added lines", release=False)
    verb(
        "cuda-objects",
        _cuda_objects,
        "compile the CUDA sources without linking them",
        release=False,
    )
    return parser


def _fetch(project: Project, options: argparse.Namespace) -> int:
    release = project.release(options.release)
    wanted = [release.archive]
    if options.device != "none":
        wanted.append(release.wheel(options.device or package.target_device(), package.machine()))
    for artifact in wanted:
        print(fetch(project, artifact, options.source))
    return 0


def _apply(project: Project, options: argparse.Namespace) -> int:
    release = project.release(options.release)
    if options.tree is None:
        print(
            apply(project, release, copy=options.copy, force=options.force, source=options.source)
        )
        return 0
    if apply_to_checkout(project, release, options.tree.absolute()):
        print("upstream's build also compiles the extension now; build it as upstream documents")
    else:
        print(
            "the extension was not added to this checkout's build (no sources, or its build files "
            "are not as expected): "
            "compile it with CMakeLists.txt of this repository and put _unison_C.so into vllm/"
        )
    for device in DEVICES:
        print(
            f"  {device}: VLLM_VERSION_OVERRIDE={package.package_version(project, release, device)}"
        )
    return 0


def _link(project: Project, options: argparse.Namespace) -> int:
    for path in place_overlay(project, project.release(options.release)):
        print(path)
    return 0


def _export(project: Project, options: argparse.Namespace) -> int:
    release = project.release(options.release)
    written, removed = export(project, release)
    for name in written:
        print(f"wrote {name}")
    for name in removed:
        print(f"removed {name}")
    counts = count(project.patches(release))
    print(f"{len(counts)} patches, {total(counts)} added lines (limit {LIMIT})")
    return 0


def _rebase(project: Project, options: argparse.Namespace) -> int:
    release, onto = project.release(options.release), project.release(options.onto)
    conflicts = rebase(project, release, onto=onto, force=options.force, source=options.source)
    tree = project.tree(onto)
    follow_up = f"python -m tools.fork export --release {onto.version}"
    if not conflicts:
        print(f"all patches replayed in {tree}; write them with '{follow_up}'")
        return 0
    print("these patches conflict:", file=sys.stderr)
    for conflict in conflicts:
        print(f"  {conflict.subject}: {', '.join(conflict.files)}", file=sys.stderr)
    print(
        f"{tree} is at the first of them: fix the files, 'git add' them, run 'git rebase "
        "--continue' there until it is "
        f"done, then '{follow_up}'",
        file=sys.stderr,
    )
    return 1


def _check(project: Project, options: argparse.Namespace) -> int:
    reports = check(project, options.source)
    for report in reports:
        for name, lines in report.counts:
            print(f"{report.version}  {lines:4} added  {name}")
        print(f"{report.version}  {total(report.counts):4} added in all, limit {LIMIT}")
    problems = [f"{report.version}: {problem}" for report in reports for problem in report.problems]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


def _cuda_objects(project: Project, options: argparse.Namespace) -> int:
    for path in build_cuda_objects(project):
        print(path)
    return 0
