# SPDX-License-Identifier: Apache-2.0
"""Patch files: reading them, writing them, counting their lines, and saying which hunk does not
apply.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from tools.fork.git import git, run

_HUNK = re.compile(r"^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_FAILED = re.compile(r"^error: patch failed: (.+):(\d+)$")
_ERROR = re.compile(r"^error: (.+?): (.+)$")


@dataclass(frozen=True)
class Hunk:
    """One hunk of a patch: its file, its header, and which of the file's hunks it is, counted from
    1.
    """

    file: str
    header: str
    number: int
    of: int
    start: int
    added: int


def patch_files(folder: Path) -> list[Path]:
    """The patches of a folder in the order in which they apply; empty when there is no such
    folder.
    """
    return sorted(folder.glob("*.patch")) if folder.is_dir() else []


def hunks(text: str) -> list[Hunk]:
    """All hunks of a patch in git's format."""
    found = list(_scan(text))
    per_file: dict[str, int] = {}
    for file, *_ in found:
        per_file[file] = per_file.get(file, 0) + 1
    seen: dict[str, int] = {}
    result = []
    for file, header, start, added in found:
        seen[file] = seen.get(file, 0) + 1
        result.append(Hunk(file, header, seen[file], per_file[file], start, added))
    return result


def _scan(text: str) -> Iterator[tuple[str, str, int, int]]:
    """(file, hunk header, first line in the old file, added lines) of each hunk."""
    file = old_name = ""
    body = iter(text.splitlines())
    for line in body:
        if line.startswith("--- "):
            old_name = line[4:].split("\t")[0]
        elif line.startswith("+++ "):
            new_name = line[4:].split("\t")[0]
            file = (old_name if new_name == "/dev/null" else new_name).partition("/")[2]
        elif match := _HUNK.match(line):
            # The lengths in the header say where the hunk ends; its lines may look like headers
            # themselves.
            old, new = (int(match[group] or 1) for group in (2, 4))
            added = 0
            while old > 0 or new > 0:
                kind = next(body, "")[:1]
                old -= kind != "+"
                new -= kind != "-"
                added += kind == "+"
            yield file, match[0], int(match[1]), added


def added_lines(text: str) -> int:
    """Number of lines that a patch adds."""
    return sum(hunk.added for hunk in hunks(text))


def touched_files(text: str) -> list[str]:
    """The files that a patch changes, in its order."""
    return list(dict.fromkeys(hunk.file for hunk in hunks(text)))


def read_patch(path: Path) -> str:
    """Text of a patch; bytes that are not UTF-8 become surrogate escapes."""
    return path.read_text(encoding="utf-8", errors="surrogateescape")


def why_not(tree: Path, patch: Path, env: Mapping[str, str] | None = None) -> list[str]:
    """What keeps ``patch`` from applying to the index of ``tree``: one line for each failing hunk
    or file.

    env: passed to git; names another index when it has GIT_INDEX_FILE.
    """
    result = run(tree, "apply", "--cached", "--check", "--verbose", str(patch), env=env)
    parsed = hunks(read_patch(patch))
    reasons = []
    explained = set()
    for line in result.stderr.splitlines():
        if match := _FAILED.match(line):
            file, start = match[1], int(match[2])
            explained.add(file)
            hunk = next((h for h in parsed if h.file == file and h.start == start), None)
            if hunk is None:
                reasons.append(f"{file}, line {start}: the hunk does not apply")
            else:
                reasons.append(
                    f"hunk {hunk.number} of {hunk.of} of {file} ({hunk.header}) does not apply"
                )
        elif (
            (match := _ERROR.match(line))
            and match[1] not in explained
            and match[1] != "while searching for"
        ):
            reasons.append(f"{match[1]}: {match[2]}")
    return reasons


def format_patches(tree: Path, base: str, tip: str = "HEAD") -> dict[str, bytes]:
    """The commits ``base..tip`` as patches: file name to content.

    Everything that depends on the machine, the git version or the commit ids is left out, so that
    equal commits give equal bytes.
    """
    with tempfile.TemporaryDirectory() as folder:
        options = [
            "--no-numbered", "--keep-subject", "--zero-commit", "--no-signature", "--no-stat",
            "--no-thread", "--no-attach", "--full-index", "--no-renames", "--unified=3",
            "--diff-algorithm=histogram", "--src-prefix=a/", "--dst-prefix=b/", "--no-ext-diff",
            "--no-textconv", "--no-color", "--binary", "--filename-max-length=120",
        ]  # fmt: skip
        git(tree, "format-patch", *options, "-o", folder, f"{base}..{tip}")
        return {path.name: path.read_bytes() for path in patch_files(Path(folder))}


def write_patches(folder: Path, contents: Mapping[str, bytes]) -> tuple[list[str], list[str]]:
    """Make ``folder`` hold exactly these patches; return the names of those written and of those
    removed.

    A file whose content is already right is not touched.
    """
    removed = [path for path in patch_files(folder) if path.name not in contents]
    for path in removed:
        path.unlink()
    written = []
    for name, content in contents.items():
        path = folder / name
        if not path.exists() or path.read_bytes() != content:
            folder.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            written.append(name)
    return written, [path.name for path in removed]


def same_patches(folder: Path, contents: Mapping[str, bytes]) -> bool:
    """Whether ``folder`` holds exactly these patches."""
    return {path.name: path.read_bytes() for path in patch_files(folder)} == dict(contents)
