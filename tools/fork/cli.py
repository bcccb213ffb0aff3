# SPDX-License-Identifier: Apache-2.0
"""The verbs of ``python -m tools.fork``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools.fork import package
from tools.fork.check import check
from tools.fork.checkout import apply_to_checkout
from tools.fork.extension import build_cuda_objects
from tools.fork.fetch import fetch
from tools.fork.patches import LIMIT, count
from tools.fork.project import DEVICES, ForkError, Project, Release, load_project
from tools.fork.runtime import make_runtime
from tools.fork.tree import apply, export, left_out, place_overlay, rebase


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; return 0 for success, 1 for a failure, explained on standard error."""
    options = _parser().parse_args(arguments)
    try:
        for line in options.run(load_project(options.root, options.source), options):
            print(line)
    except ForkError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tools.fork", description="The life of the patch set."
    )
    parser.add_argument("--root", type=Path, help="repository to work on (default: this one)")
    subparsers = parser.add_subparsers(required=True, metavar="VERB")
    verbs = {}
    for name, run, text in (
        ("fetch", _fetch, "download upstream's source archive and wheel, and check them"),
        ("apply", _apply, "build the patched tree, or turn an upstream checkout into the fork"),
        ("link", _link, "link overlay files added since the last apply into the tree"),
        ("export", _export, "write the tree's commits back to patches/"),
        ("rebase", _rebase, "replay the patches on another release"),
        ("check", _check, "try every patch on every release, and compare the overlay with them"),
        ("runtime", _runtime, "make a release importable in this environment, for tests"),
        ("cuda-objects", _cuda_objects, "compile the CUDA sources without linking them"),
    ):
        verbs[name] = sub = subparsers.add_parser(name, help=text, description=text)
        sub.set_defaults(run=run)
        text = "folder or file: address to copy upstream's files from (default: $UNISON_SOURCE)"
        sub.add_argument("--source", help=text)
        if name not in ("check", "cuda-objects"):
            text = "release of upstream.toml (default: the one it names)"
            sub.add_argument("--release", help=text)
    text = "whose wheel (default: as the build would choose)"
    verbs["fetch"].add_argument("--device", choices=[*DEVICES, "none"], help=text)
    for option, text in {
        "--copy": "copy the overlay instead of linking it",
        "--force": "drop what the tree has that is not exported",
    }.items():
        verbs["apply"].add_argument(option, action="store_true", help=text)
    text = "an upstream git checkout to turn into the fork instead"
    verbs["apply"].add_argument("--tree", type=Path, help=text)
    text = "first record that upstream's code that the overlay builds on has been reviewed"
    verbs["check"].add_argument("--reviewed", action="store_true", help=text)
    text = "release of upstream.toml to move to"
    verbs["rebase"].add_argument("onto", metavar="RELEASE", help=text)
    text = "replace the patches that RELEASE has"
    verbs["rebase"].add_argument("--force", action="store_true", help=text)
    return parser


# The verbs; they return, or yield as they go, what is printed.


def _fetch(project: Project, options: argparse.Namespace) -> Iterator[Path]:
    release = project.release(options.release)
    yield fetch(project, release.archive)
    if options.device != "none":
        device = options.device or package.target_device()
        yield fetch(project, release.wheel(device, package.machine()))


def _apply(project: Project, options: argparse.Namespace) -> Iterator[Path | str]:
    release = project.release(options.release)
    if options.tree is None:
        yield apply(project, release, copy=options.copy, force=options.force)
        return
    if apply_to_checkout(project, release, options.tree.absolute()):
        yield "upstream's build also compiles the extension now; build it as upstream documents"
    else:
        yield (
            "the extension was not added to this checkout's build (no sources, or its build files "
            "are not as expected): compile it with CMakeLists.txt of this repository and put "
            "_unison_C.so into vllm/"
        )
    for device in DEVICES:
        version = package.package_version(project, release, device)
        yield f"  {device}: VLLM_VERSION_OVERRIDE={version}"


def _link(project: Project, options: argparse.Namespace) -> list[str]:
    return place_overlay(project, project.release(options.release))


def _export(project: Project, options: argparse.Namespace) -> Iterator[str]:
    release = project.release(options.release)
    written, removed = export(project, release)
    yield from (f"wrote {name}" for name in written)
    yield from (f"removed {name}" for name in removed)
    counts = count(project.patches(release))
    yield f"{len(counts)} patches, {sum(counts.values())} added lines (limit {LIMIT})"
    yield from _left_out(project, release)


def _rebase(project: Project, options: argparse.Namespace) -> Iterator[str]:
    onto = project.release(options.onto)
    tree = rebase(project, project.release(options.release), onto=onto, force=options.force)
    verb = f"python -m tools.fork export --release {onto.version}"
    yield f"the patches are replayed in {tree}; write them with '{verb}'"
    yield from _left_out(project, onto)


def _left_out(project: Project, release: Release) -> Iterator[str]:
    for name in left_out(project, release):
        yield f"{release.version} does without {name} of {project.default}"


def _check(project: Project, options: argparse.Namespace) -> Iterator[str]:
    reports = check(project, record=options.reviewed)
    for report in reports:
        for name, lines in report.counts.items():
            yield f"{report.version}  {lines:4} added  {name}"
        yield f"{report.version}  {sum(report.counts.values()):4} added in all, limit {LIMIT}"
    problems = [f"{report.version}: {problem}" for report in reports for problem in report.problems]
    if problems:
        raise ForkError("\nerror: ".join(problems))


def _runtime(project: Project, options: argparse.Namespace) -> Iterator[Path]:
    yield make_runtime(project, project.release(options.release))


def _cuda_objects(project: Project, options: argparse.Namespace) -> list[Path]:
    return build_cuda_objects(project)
