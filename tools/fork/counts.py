# SPDX-License-Identifier: Apache-2.0
"""The count of added lines: the limit, and the table in ``patches/README.md``."""

from __future__ import annotations

from pathlib import Path

from tools.fork.errors import ForkError
from tools.fork.patches import added_lines, patch_files, read_patch
from tools.fork.project import Project

LIMIT = 300
"""Most lines that all patches of a release may add together."""

_BEGIN = "<!-- counts: written by export -->\n"
_END = "<!-- end of counts -->\n"


def count(folder: Path) -> list[tuple[str, int]]:
    """(name, added lines) of each patch of a folder."""
    return [(path.name, added_lines(read_patch(path))) for path in patch_files(folder)]


def total(counts: list[tuple[str, int]]) -> int:
    """Added lines of all patches together."""
    return sum(lines for _, lines in counts)


def table(counts: list[tuple[str, int]]) -> str:
    """A Markdown table of patches and added lines."""
    rows = ["| patch | added lines |", "|---|---:|"]
    rows += [f"| `{name}` | {lines} |" for name, lines in counts]
    rows += [f"| **all** | **{total(counts)}** of {LIMIT} |"]
    return "".join(f"{row}\n" for row in rows)


def readme_text(project: Project, text: str) -> str:
    """Text of ``patches/README.md`` with the tables of all releases brought up to date.

    Raises ForkError when the two comments between which the tables stand are missing.
    """
    head, begin, rest = text.partition(_BEGIN)
    _, end, tail = rest.partition(_END)
    if not begin or not end:
        raise ForkError(f"patches/README.md has to contain {_BEGIN.strip()} and {_END.strip()}")
    sections = []
    for version, release in project.releases.items():
        counts = count(project.patches(release))
        if counts:
            sections.append(f"\n## {version}\n\n{table(counts)}\n")
    return head + begin + "".join(sections) + end + tail


def update_readme(project: Project) -> bool:
    """Rewrite the tables in ``patches/README.md``; return whether anything changed. Nothing to do
    without that file.
    """
    path = project.root / "patches" / "README.md"
    if not path.exists():
        return False
    text = path.read_text(encoding="utf-8")
    wanted = readme_text(project, text)
    if wanted != text:
        path.write_text(wanted, encoding="utf-8")
    return wanted != text


def readme_is_current(project: Project) -> bool:
    """Whether the tables in ``patches/README.md`` (if there is one) are those of the patches."""
    path = project.root / "patches" / "README.md"
    if not path.exists():
        return True
    text = path.read_text(encoding="utf-8")
    return readme_text(project, text) == text
