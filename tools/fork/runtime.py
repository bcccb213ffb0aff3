# SPDX-License-Identifier: Apache-2.0
"""A release that can be imported in this virtual environment, in place of the installed one."""

from __future__ import annotations

import sys
from pathlib import Path

from tools.fork import package
from tools.fork.extension import build_extension
from tools.fork.fetch import fetch
from tools.fork.project import Project, Release
from tools.fork.tree import apply, ensure_upstream, place_overlay, unexported


def make_runtime(project: Project, release: Release) -> Path:
    """Folder that makes ``release``, for the CPU, what Python imports when it is on PYTHONPATH.

    It leads to the patched tree with the overlay, upstream's compiled modules (its own, or those of
    its ``binaries``), and our extension as it was built for the installed release.
    """
    update_tree(project, release)
    lender = project.compiled(release)
    ensure_upstream(project, lender)
    wheel = fetch(project, lender.wheel("cpu", package.machine()))
    built = project.build / "extension" / "cpu" / "_unison_C.so"
    extension = built if built.exists() else build_extension(project, "cpu")
    version = package.package_version(project, release, "cpu")
    folder = project.build / "runtime" / release.version
    return package.link_development(project, release, wheel, version, extension, folder)


def update_tree(project: Project, release: Release) -> None:
    """Bring the tree up to date, except for work in it that is not exported: that is kept."""
    if work := unexported(project, release):
        print(f"warning: {work}; the tree is taken as it is", file=sys.stderr)
        place_overlay(project, release)
    else:
        apply(project, release)
