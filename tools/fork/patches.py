# SPDX-License-Identifier: Apache-2.0
"""Patch files: reading and writing them in git's own formats, and counting their lines."""

from __future__ import annotations

import email
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tools.fork.git import git, run
from tools.fork.project import ForkError, Project

LIMIT = 300
"""Most lines that all patches of a release may add together."""

_BEGIN = "<!-- counts: written by export -->\n"
_END = "<!-- end of counts -->\n"
_TRAILER = re.compile(r"[\w-]+-by: ")


def patch_files(folder: Path) -> list[Path]:
    """The patches of a folder in the order in which they apply; none without such a folder."""
    return sorted(folder.glob("*.patch"))


def read_patch(path: Path) -> str:
    """Text of a patch; bytes that are not UTF-8 become surrogate escapes."""
    return path.read_text(encoding="utf-8", errors="surrogateescape")


def added_lines(text: str) -> int:
    """Number of lines that a patch adds; 0 for what is no patch."""
    # Outside any repository, where git would leave out the files that are not below the folder.
    outside = {"GIT_DIR": os.devnull}
    table = run(Path(os.sep), "apply", "--numstat", "-z", "-", input=text, env=outside).stdout
    counts = (row.partition("\t")[0] for row in table.split("\0"))
    return sum(int(count) for count in counts if count.isdigit())  # "-" for a binary file


def has_body(text: str) -> bool:
    """Whether the message of a patch says more than its subject and who signed it off."""
    payload = str(email.message_from_string(text).get_payload())
    body = re.split(r"^(?:---|diff --git )", payload, maxsplit=1, flags=re.MULTILINE)[0]
    return any(line.strip() and not _TRAILER.match(line) for line in body.splitlines())


def format_patches(tree: Path, base: str) -> dict[str, bytes]:
    """The commits ``base..HEAD`` as patches: file name to content, the same bytes for the same
    changes and messages on any machine, with any version of git and any commit ids.
    """
    options = [
        "--no-numbered", "--keep-subject", "--zero-commit", "--no-signature", "--no-stat",
        "--no-thread", "--no-attach", "--full-index", "--no-renames", "--unified=3",
        "--diff-algorithm=histogram", "--src-prefix=a/", "--dst-prefix=b/", "--no-ext-diff",
        "--no-textconv", "--no-color", "--binary", "--filename-max-length=120",
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        git(tree, "format-patch", *options, "-o", folder, f"{base}..HEAD")
        return contents(Path(folder))


def contents(folder: Path) -> dict[str, bytes]:
    """The patches of a folder: file name to content."""
    return {path.name: path.read_bytes() for path in patch_files(folder)}


def write_patches(folder: Path, wanted: Mapping[str, bytes]) -> tuple[list[str], list[str]]:
    """Make ``folder`` hold exactly these patches, touching no file that is right already; return
    the names written, and those removed.
    """
    present = contents(folder)
    removed = [name for name in present if name not in wanted]
    for name in removed:
        (folder / name).unlink()
    written = [name for name, content in wanted.items() if present.get(name) != content]
    for name in written:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(wanted[name])
    return written, removed


def count(folder: Path) -> dict[str, int]:
    """Added lines of each patch of a folder, by name."""
    return {path.name: added_lines(read_patch(path)) for path in patch_files(folder)}


def update_readme(project: Project, *, write: bool = True) -> bool:
    """Bring the tables of all releases in ``patches/README.md``, if there is one, up to date.

    write: False only looks. Returns whether they were up to date.
    Raises ForkError when the two comments between which the tables stand are missing.
    """
    path = project.root / "patches" / "README.md"
    if not path.exists():
        return True
    text = path.read_text(encoding="utf-8")
    head, begin, rest = text.partition(_BEGIN)
    _, end, tail = rest.partition(_END)
    if not begin or not end:
        raise ForkError(f"{path} has to contain {_BEGIN.strip()} and {_END.strip()}")
    tables = ""
    for version, release in project.releases.items():
        if counts := count(project.patches(release)):
            rows = [f"| `{name}` | {lines} |\n" for name, lines in counts.items()]
            tables += f"\n## {version}\n\n| patch | added lines |\n|---|---:|\n{''.join(rows)}"
            tables += f"| **all** | **{sum(counts.values())}** of {LIMIT} |\n\n"
    wanted = head + begin + tables + end + tail
    if write and wanted != text:
        path.write_text(wanted, encoding="utf-8")
    return wanted == text
