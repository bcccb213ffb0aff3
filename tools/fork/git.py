# SPDX-License-Identifier: Apache-2.0
"""Running git, with no influence of the user's configuration and the caller's environment."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tools.fork.project import ForkError

# Author and committer of generated commits are fixed: the same patches give the same ids.
_WHO = {"NAME": "Unison", "EMAIL": "unison@localhost", "DATE": "2000-01-01T00:00:00+0000"}
_IDENTITY = {f"GIT_{role}_{k}": v for role in ("AUTHOR", "COMMITTER") for k, v in _WHO.items()}

_SETTINGS = (
    "core.autocrlf=false", "core.quotePath=false", "core.fileMode=true", "core.symlinks=true",
    f"core.hooksPath={os.devnull}", "advice.detachedHead=false", "commit.gpgSign=false",
    "gc.auto=0", "init.defaultBranch=main", "rebase.autoStash=false", "safe.directory=*",
)  # fmt: skip


def run(
    folder: Path,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    input: str | None = None,
    show: bool = False,
) -> subprocess.CompletedProcess[str]:
    """Run git in ``folder``; return its exit status, standard output and standard error.

    show: let the user see what git prints, all of it on standard error, instead of returning it.
    Text that is not UTF-8 survives a round trip through surrogate escapes.
    """
    # No GIT_* variable of the caller (a hook sets them), no user configuration.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    environment |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C"}
    environment |= {"GIT_EDITOR": "true", "GIT_TERMINAL_PROMPT": "0"} | _IDENTITY | dict(env or {})
    try:
        return subprocess.run(
            ["git", *(part for setting in _SETTINGS for part in ("-c", setting)), *arguments],
            cwd=folder,
            env=environment,
            input=input,
            stdout=2 if show else subprocess.PIPE,
            stderr=None if show else subprocess.PIPE,
            encoding="utf-8",
            errors="surrogateescape",
            check=False,
        )
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ForkError(f"git is not installed, or there is no such folder: {error}") from None


def git(folder: Path, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """Standard output of a git command in ``folder``; ForkError with all output when it fails."""
    result = run(folder, *arguments, env=env)
    if result.returncode:
        command, output = " ".join(arguments[:3]), (result.stdout + result.stderr).strip()
        raise ForkError(f"git {command} failed in {folder}:\n{output}")
    return result.stdout


def lines(text: str) -> list[str]:
    """The entries of NUL-separated git output."""
    return [entry for entry in text.split("\0") if entry]


def operation_in_progress(tree: Path) -> str | None:
    """Which of git's commands waits in ``tree`` for a repair: "am", "rebase" or None."""
    folder = Path(git(tree, "rev-parse", "--absolute-git-dir").strip())
    if (folder / "rebase-apply" / "applying").exists():
        return "am"
    waits = (folder / "rebase-apply").exists() or (folder / "rebase-merge").exists()
    return "rebase" if waits else None


def unfinished(tree: Path) -> str | None:
    """In words, what in ``tree`` waits for a repair or a commit; None when nothing does."""
    if state := operation_in_progress(tree):
        return f"{tree} is in the middle of 'git {state}'"
    if changed := uncommitted(tree):
        return f"{tree} has changes that are not committed: {', '.join(changed[:5])}"
    return None


def tracked(tree: Path, revision: str = "HEAD") -> list[str]:
    """Paths of all files of a commit."""
    return lines(git(tree, "ls-tree", "-r", "-z", "--name-only", revision))


def uncommitted(tree: Path) -> list[str]:
    """Upstream files with changes that no commit holds, and new files that git does not ignore."""
    options = ["--porcelain", "-z", "--untracked-files=normal", "--no-renames"]
    return [entry[3:] for entry in lines(git(tree, "status", *options))]
