# SPDX-License-Identifier: Apache-2.0
"""Running git so that the user's configuration and the caller's environment do not change the
result.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tools.fork.errors import ForkError

# The committer of generated commits is fixed, so that the same patches always give the same commit
# ids.
_COMMITTER = {
    "GIT_COMMITTER_NAME": "Unison",
    "GIT_COMMITTER_EMAIL": "unison@localhost",
    "GIT_COMMITTER_DATE": "2000-01-01T00:00:00+0000",
}
_AUTHOR = {key.replace("COMMITTER", "AUTHOR"): value for key, value in _COMMITTER.items()}

_SETTINGS = {
    "core.autocrlf": "false",
    "core.quotePath": "false",
    "core.fileMode": "true",
    "core.symlinks": "true",
    "core.hooksPath": os.devnull,
    "advice.detachedHead": "false",
    "commit.gpgSign": "false",
    "gc.auto": "0",
    "init.defaultBranch": "main",
    "rebase.autoStash": "false",
    "safe.directory": "*",
}


class GitError(ForkError):
    """A git command failed; ``output`` is all it printed."""

    def __init__(self, command: list[str], output: str) -> None:
        super().__init__(f"{' '.join(command)} failed:\n{output.strip()}")
        self.output = output


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment for git: no GIT_* variable of the caller (a hook sets them), no user
    configuration.
    """
    env = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    env |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1", "LC_ALL": "C"}
    env |= {"GIT_EDITOR": "true", "GIT_TERMINAL_PROMPT": "0"}
    return env | _AUTHOR | _COMMITTER | dict(extra or {})


def run(
    folder: Path, *arguments: str, env: Mapping[str, str] | None = None, input: str | None = None
) -> subprocess.CompletedProcess[str]:
    """Run git in ``folder``; return its exit status, standard output and standard error.

    Text that is not UTF-8 survives a round trip through surrogate escapes.
    """
    settings = [part for key, value in _SETTINGS.items() for part in ("-c", f"{key}={value}")]
    try:
        return subprocess.run(
            ["git", *settings, *arguments],
            cwd=folder,
            env=environment(env),
            input=input,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            check=False,
        )
    except FileNotFoundError:
        if not folder.is_dir():
            raise ForkError(f"{folder} does not exist") from None
        raise ForkError("git is not installed; it builds the patched tree") from None


def git(
    folder: Path, *arguments: str, env: Mapping[str, str] | None = None, input: str | None = None
) -> str:
    """Standard output of a git command in ``folder``. Raises GitError when it fails."""
    result = run(folder, *arguments, env=env, input=input)
    if result.returncode:
        raise GitError(["git", *arguments[:4]], result.stdout + result.stderr)
    return result.stdout


def lines(text: str) -> list[str]:
    """The entries of NUL-separated git output."""
    return [entry for entry in text.split("\0") if entry]


def git_directory(tree: Path) -> Path:
    """Folder where git keeps the state of ``tree``."""
    return Path(git(tree, "rev-parse", "--absolute-git-dir").strip())
