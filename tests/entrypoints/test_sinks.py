# SPDX-License-Identifier: Apache-2.0
"""Where `vllm speak` puts its audio, without an engine: files, streams and players."""

from __future__ import annotations

import os
import stat
import sys
import threading
from pathlib import Path

import pytest

from vllm.entrypoints.speech.cli import sinks
from vllm.entrypoints.speech.cli.process import printable
from vllm.entrypoints.speech.cli.remote import file_name

PYTHON = sys.executable


def write(path: Path | str, data: bytes = b"new") -> None:
    with sinks.replaced_file(str(path)) as file:
        file.write(data)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_failure_leaves_the_file_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "out.wav"
    path.write_bytes(b"old")
    with pytest.raises(error), sinks.replaced_file(str(path)) as file:
        file.write(b"half of it")
        raise error
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failure_makes_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError), sinks.replaced_file(str(tmp_path / "out.wav")):
        raise ValueError
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o755])
def test_permissions_of_the_file_that_is_replaced_stay(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "out.wav"
    path.write_bytes(b"old and longer")
    path.chmod(mode)
    write(path)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_new_file_has_the_permissions_of_any_new_file(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        write(tmp_path / "out.wav")
        (tmp_path / "plain").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "out.wav").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "real.wav").write_bytes(b"old")
    (tmp_path / "out.wav").symlink_to(tmp_path / "folder" / "real.wav")
    write(tmp_path / "out.wav")
    assert (tmp_path / "out.wav").is_symlink()
    assert (tmp_path / "folder" / "real.wav").read_bytes() == b"new"


def test_a_name_of_any_length_that_the_file_system_takes(tmp_path: Path) -> None:
    write(tmp_path / ("a" * 251 + ".wav"))
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"new"]


def test_what_cannot_be_written_is_told_with_the_name_that_was_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    for path, message in (
        ("none/out.wav", r"No such file or directory: 'none/out.wav'"),
        ("folder", r"Is a directory: 'folder'"),
        ("", r"No such file or directory: ''"),
    ):
        with pytest.raises(OSError, match=message), sinks.replaced_file(path):
            pytest.fail("began")
    (tmp_path / "kept").write_bytes(b"old")
    monkeypatch.setattr(sinks.os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="Permission denied: 'kept'"):
        write("kept")
    assert (tmp_path / "kept").read_bytes() == b"old"


def test_a_file_in_a_folder_that_takes_no_new_ones_is_written_over_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(sinks.tempfile, "mkstemp", refuse)
    path = tmp_path / "out.wav"
    with pytest.raises(PermissionError, match=r"out\.wav"):
        write(path)
    path.write_bytes(b"old")
    with pytest.raises(ValueError), sinks.replaced_file(str(path)) as file:
        file.write(b"half")
        raise ValueError
    assert path.read_bytes() == b"old"
    write(path)
    assert path.read_bytes() == b"new"


def test_streams_are_told_from_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").touch()
    read, write_end = os.pipe()
    try:
        for path, number, kept in (
            ("-", 1, False),
            ("/dev/stdout", 1, False),
            ("/dev/stderr", 2, False),
            (f"/dev/fd/{write_end}", write_end, False),
            (f"/proc/self/fd/{write_end}", write_end, False),
            ("/dev/null", None, False),
            (str(tmp_path / "pipe"), None, False),
            (str(tmp_path / "file"), None, True),
            (str(tmp_path / "new"), None, True),
            ("dev/fd/1", None, True),
        ):
            assert sinks.descriptor_of(path) == number, path
            assert sinks.is_kept(path) is kept, path
    finally:
        os.close(read)
        os.close(write_end)


def player(code: str, fails_quietly: bool = False) -> tuple[sinks.Player, ...]:
    return (sinks.Player(("no-such-player",)), sinks.Player((PYTHON, "-c", code), fails_quietly))


def test_a_player_gets_all(tmp_path: Path) -> None:
    heard = tmp_path / "heard"
    code = f"import sys; open({str(heard)!r}, 'wb').write(sys.stdin.buffer.read())"
    with sinks.playing(player(code)) as sink:
        sink.write(b"RIFF" + bytes(200_000))
    assert heard.read_bytes() == b"RIFF" + bytes(200_000)


@pytest.mark.parametrize(
    ("code", "quiet", "told"),
    [
        ("import sys; sys.stdin.read(); sys.exit(3)", False, "it ended with status 3"),
        ("import sys; sys.exit('\\nno sound card')", False, "no sound card"),
        ("import sys; print('no device', file=sys.stderr)", True, "no device"),
        ("pass", False, "it ended with status 0"),
    ],
)
def test_a_player_that_fails_is_told(code: str, quiet: bool, told: str) -> None:
    with (
        pytest.raises(RuntimeError, match=rf"--play: \S+ could not play: {told}"),
        sinks.playing(player(code, quiet)) as sink,
    ):
        for _ in range(100):
            sink.write(bytes(2**16))
            sink.flush()


def test_a_player_may_warn() -> None:
    code = "import sys; sys.stdin.read(); print('underrun', file=sys.stderr)"
    with sinks.playing(player(code)) as sink:
        sink.write(b"RIFF")


def test_a_failure_ends_the_player() -> None:
    code = "import sys, time; sys.stdin.read(); time.sleep(10**6)"
    ended = threading.Event()

    def fail() -> None:
        with pytest.raises(ValueError, match="of the engine"), sinks.playing(player(code)):
            raise ValueError("of the engine")
        ended.set()

    thread = threading.Thread(target=fail, daemon=True)
    thread.start()
    assert ended.wait(120)


def test_no_player_is_told_by_name() -> None:
    with (
        pytest.raises(ValueError, match="--play needs one of a, b; write a file"),
        sinks.playing((sinks.Player(("a",)), sinks.Player(("b",)))),
    ):
        pytest.fail("began")


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("question.wav", "question.wav"),
        ("größe 2.wav", "größe 2.wav"),
        ('a"; filename="b.wav', "a_; filename=_b.wav"),
        ("a\r\nx-injected: 1\r\n\r\n.wav", "a__x-injected: 1____.wav"),
        ("a\x00\x1b[2J\x7f.wav", "a__[2J_.wav"),
        ("../../etc\\passwd", ".._.._etc_passwd"),
        ("\udcff.wav", "_.wav"),
    ],
)
def test_a_file_name_cannot_end_a_header(name: str, safe: str) -> None:
    assert file_name(name) == safe


def test_a_terminal_is_sent_nothing_that_it_obeys() -> None:
    assert printable("plain größe\nnext") == "plain größe\nnext"
    told = printable("\x1b]0;title\x07 \r\x08 \u202e \udcff \t")
    assert told == "�]0;title� �� � � �"
