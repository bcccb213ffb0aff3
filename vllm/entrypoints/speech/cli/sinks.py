# SPDX-License-Identifier: Apache-2.0
"""Where `vllm speak` puts its audio: a file, a stream or a player."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d+)")
_STREAMS = {"-": 1, "/dev/stdout": 1, "/dev/stderr": 2}


@dataclass(frozen=True)
class Player:
    """A program that plays a WAV stream from its input.

    Attributes:
        command: with its options, which keep it from writing anything but errors.
        fails_quietly: whether it returns 0 when it could not play, and says so only in words.
    """

    command: tuple[str, ...]
    fails_quietly: bool = False

    @property
    def name(self) -> str:
        return self.command[0]


PLAYERS = (
    Player(("ffplay", "-nodisp", "-autoexit", "-loglevel", "error", "-i", "-"), fails_quietly=True),
    Player(("play", "-q", "-t", "wav", "-")),
    Player(("aplay", "-q", "-")),
)
"""The first that is installed is used."""


def descriptor_of(path: str) -> int | None:
    """The open file that a path stands for (`-` is standard output), if it stands for one."""
    found = _DESCRIPTOR.fullmatch(path)
    return int(found[1]) if found else _STREAMS.get(path)


def is_kept(path: str) -> bool:
    """Whether a path is, or will be, a regular file that can be written over and completed."""
    if descriptor_of(path) is not None:
        return False
    with contextlib.suppress(OSError):
        return stat.S_ISREG(os.stat(path).st_mode)
    return True


@contextlib.contextmanager
def replaced_file(path: str) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` when the context ends well, else leaves it as it was.

    It gets the permissions of the file that it replaces, and follows a link.

    Raises:
        OSError: before anything is written, if `path` cannot be written.
    """
    target = Path(os.path.realpath(path))
    if not path or not target.parent.is_dir():
        raise _os_error(errno.ENOENT, path)
    if target.is_dir():
        raise _os_error(errno.EISDIR, path)
    if target.exists() and not os.access(target, os.W_OK):
        raise _os_error(errno.EACCES, path)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{target.name[:100]}.", dir=target.parent)
    except PermissionError as error:
        # A folder in which no file can be made may have one that can be written.
        if not target.exists():
            raise _os_error(errno.EACCES, path) from error
        with _copied_file(target) as file:
            yield file
        return
    partial = Path(name)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
        _give_permissions(partial, target)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _os_error(number: int, path: str) -> OSError:
    """As the operating system would have put it, with the name that the user gave."""
    return OSError(number, os.strerror(number), path)


@contextlib.contextmanager
def _copied_file(target: Path) -> Iterator[IO[bytes]]:
    with tempfile.TemporaryFile() as kept:
        yield kept
        kept.seek(0)
        with target.open("wb") as file:
            shutil.copyfileobj(kept, file)


def _give_permissions(partial: Path, target: Path) -> None:
    try:
        replaced = target.stat()
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        partial.chmod(0o666 & ~mask)
        return
    with contextlib.suppress(PermissionError):
        os.chown(partial, replaced.st_uid, replaced.st_gid)
    partial.chmod(stat.S_IMODE(replaced.st_mode))


@contextlib.contextmanager
def playing(players: tuple[Player, ...] = PLAYERS) -> Iterator[IO[bytes]]:
    """The input of the first player that is installed.

    Raises:
        ValueError: if none is.
        RuntimeError: if it ends before all is played, or says that it cannot play.
    """
    player = next((p for p in players if shutil.which(p.name) is not None), None)
    if player is None:
        names = ", ".join(p.name for p in players)
        raise ValueError(f"--play needs one of {names}; write a file with --output instead")
    with tempfile.TemporaryFile() as words:
        process = subprocess.Popen(
            player.command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=words
        )
        assert process.stdin is not None
        broke_off = False
        try:
            yield process.stdin
            process.stdin.close()
        except BrokenPipeError:
            broke_off = True
        except BaseException:
            process.kill()
            raise
        finally:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
            status = process.wait()
        words.seek(0)
        printed = words.read(2**16).decode(errors="replace").strip()
    if status or broke_off or (player.fails_quietly and printed):
        last = printed.splitlines()[-1] if printed else f"it ended with status {status}"
        raise RuntimeError(f"--play: {player.name} could not play: {last}")
