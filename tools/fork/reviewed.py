# SPDX-License-Identifier: Apache-2.0
"""patches/reviewed.toml: upstream's code that the overlay builds on, as it was when last read."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tools.fork.project import ForkError, Project
from tools.fork.upstream_api import ABSENT, Modules, Overlay, code, fingerprint, lookup

_WRITTEN = "# Written by `python -m tools.fork check --reviewed`"
_HEADER = f"""{_WRITTEN}: a hash of each piece of code that differs between
# releases, under the first release that has it so.
[reviewed]
"""


@dataclass(frozen=True)
class Reviewed:
    """What the file says.

    mirrored: upstream's functions and classes (``module:qualified``) that the overlay relies on
        without overriding them, and where and why.
    hashes: by name and release, of these and of overridden methods.
    """

    mirrored: Mapping[str, str] = field(default_factory=dict)
    hashes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


def path_of(project: Project) -> Path:
    """Where the file is."""
    return project.root / "patches" / "reviewed.toml"


def read_reviewed(project: Project) -> Reviewed:
    """The file's content; nothing without the file. Raises ForkError when it is not TOML."""
    path = path_of(project)
    if not path.exists():
        return Reviewed()
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ForkError(f"{path} is not TOML: {error}") from None
    return Reviewed(data.get("mirrored", {}), data.get("reviewed", {}))


def unreviewed(
    reviewed: Reviewed, overlay: Overlay, version: str, upstream: Mapping[str, Modules]
) -> list[str]:
    """In words, each with a diff to read, what nobody has reviewed in the release ``version``.

    upstream: the unchanged modules of every release.
    """
    problems = []
    for name in sorted({*reviewed.mirrored, *overlay.overridden(upstream[version])}):
        recorded = reviewed.hashes.get(name, {})
        now = lookup(upstream[version], name)
        if fingerprint(now) in recorded.values():
            continue
        readable = [other for other in upstream if other in recorded and other != version]
        if not readable:
            problems.append(f"{name}: the overlay builds on it, and no review is recorded")
            continue
        before = lookup(upstream[readable[0]], name)
        old, new = (code(node).splitlines() if node else [ABSENT] for node in (before, now))
        diff = difflib.unified_diff(old, new, readable[0], version, lineterm="")
        problems.append("\n".join([f"{name} changed since its review:", *diff]))
    return problems


def record(project: Project, overlay: Overlay, upstream: Mapping[str, Modules]) -> None:
    """Write that the code of all releases has been reviewed as it is."""
    reviewed = read_reviewed(project)
    names = set(reviewed.mirrored)
    for modules in upstream.values():
        names |= overlay.overridden(modules)
    rows = []
    for name in sorted(names):
        first: dict[str, str] = {}  # the first release by fingerprint
        # upstream.toml has the newest release first.
        for version, modules in reversed(list(upstream.items())):
            first.setdefault(fingerprint(lookup(modules, name)), version)
        entries = ", ".join(f'"{version}" = "{digest}"' for digest, version in first.items())
        rows.append(f'"{name}" = {{ {entries} }}\n')
    path = path_of(project)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    by_hand = text.partition(_WRITTEN)[0]
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{by_hand}{_HEADER}{''.join(rows)}", encoding="utf-8")
