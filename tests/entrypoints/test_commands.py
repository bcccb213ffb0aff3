# SPDX-License-Identifier: Apache-2.0
"""`vllm speak` and `vllm transcribe` as processes, with the packaged model and with odd servers."""

from __future__ import annotations

import contextlib
import http.server
import os
import pty
import signal
import subprocess
import sys
import threading
import wave
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.demonstration import SENTENCE
from vllm.entrypoints.speech.encoding import encode_whole

COMMAND = (sys.executable, "-m", "vllm.entrypoints.cli.main")
KEY = "sk-never-to-be-shown"


def environment(**more: str) -> dict[str, str]:
    drop = {"VLLM_LOGGING_LEVEL", "TORCH_CPP_LOG_LEVEL", "VLLM_ENABLE_V1_MULTIPROCESSING"}
    kept = {name: value for name, value in os.environ.items() if name not in drop}
    return kept | {"OPENAI_API_KEY": KEY, "HF_HUB_OFFLINE": "1"} | more


def vllm(*arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        cwd=cwd,
        env=environment(**more),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("command", "option"), [("speak", "--help"), ("transcribe", "-h"), ("speak", "--help=all")]
)
def test_help_shows_the_options_and_no_key(command: str, option: str, tmp_path: Path) -> None:
    shown = vllm(command, option, cwd=tmp_path)
    assert shown.returncode == 0 and not shown.stderr
    for name in ("--model", "--seed", "--url", "--api-key", "--max-tokens", "--verbose"):
        assert name in shown.stdout
    assert ("--voice" in shown.stdout) == (command == "speak")
    assert KEY not in shown.stdout
    assert "OPENAI_API_KEY" in shown.stdout


def imported(*arguments: str, cwd: Path) -> set[str]:
    """The modules that a command imports."""
    code = (
        "import sys\n"
        f"sys.argv = {['vllm', *arguments]!r}\n"
        "from vllm.entrypoints.speech.cli import commands\n"
        "commands.leave = lambda status: (print(*sys.modules, file=sys.stderr), sys.exit(status))\n"
        "from vllm.entrypoints.cli.main import main\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


@pytest.mark.slow
def test_a_command_imports_what_it_needs_alone(odd: str, tmp_path: Path) -> None:
    """Imports are most of the time that a sentence takes."""
    server = {
        "vllm.entrypoints.cli.serve",
        "vllm.entrypoints.cli.benchmark.main",
        "fastapi.applications",
    }
    engine = {"vllm.engine.arg_utils", "vllm.v1.engine.llm_engine", "transformers.modeling_utils"}
    remote = imported("speak", "hi", "--url", odd, "-o", "-", cwd=tmp_path)
    assert "vllm.entrypoints.speech.cli.remote" in remote
    assert not remote & (server | engine)
    here = imported("speak", "stop", cwd=tmp_path)
    assert here >= {"vllm.v1.engine.llm_engine"}
    assert not here & {"vllm.entrypoints.cli.serve", "vllm.entrypoints.cli.benchmark.main"}


@pytest.mark.slow
def test_a_command_prints_its_result_and_nothing_else(tmp_path: Path) -> None:
    spoken = vllm("speak", SENTENCE, "-o", "road.wav", cwd=tmp_path)
    assert (spoken.returncode, spoken.stdout, spoken.stderr) == (0, "wrote road.wav\n", "")
    with wave.open(str(tmp_path / "road.wav")) as file:
        assert file.getnframes() * 2 + 44 == (tmp_path / "road.wav").stat().st_size
        assert file.getnframes() > file.getframerate() // 2
    heard = vllm("transcribe", "road.wav", "-v", cwd=tmp_path)
    assert (heard.returncode, heard.stdout) == (
        0,
        f"{SENTENCE}\n",
    )
    assert "INFO" in heard.stderr


@pytest.mark.slow
def test_a_terminal_sees_what_the_command_is_at(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "speak", "stop", "-o", "out.wav"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # the end of a terminal
        while piece := os.read(ours, 2**12):
            seen += piece
    assert process.communicate()[0] == b"wrote out.wav\n" and process.returncode == 0
    assert b"loading unison-default (00:" in seen and b"speaking: " in seen
    assert seen.rstrip(b"\r ").endswith(b"\r") or not seen.split(b"\r")[-1].strip()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_the_file_as_it_was(number: int, tmp_path: Path) -> None:
    (tmp_path / "out.wav").write_bytes(b"spoken before")
    process = subprocess.Popen(
        [*COMMAND, "speak", "stop", "-o", "out.wav"],
        cwd=tmp_path,
        env=environment(),
        stderr=subprocess.PIPE,
        # Whoever runs the tests in the background may ignore SIGINT, which a child inherits.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    # The file beside is made before anything is loaded, and is gone at the end.
    while len(list(tmp_path.iterdir())) == 1:
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.01)
    process.send_signal(number)
    assert process.stderr is not None and process.stderr.read() == b""
    assert process.wait() == 128 + number
    assert (tmp_path / "out.wav").read_bytes() == b"spoken before"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        # test_cli.py has the others of an engine.
        pytest.param(
            ("speak", "stop", "-o", "out.wav", "--voice", "bob"),
            "voice must be one of",
            marks=pytest.mark.nightly,
        ),
        (("speak", "stop", "-o", "none/out.wav"), "No such file or directory: 'none/out.wav'"),
        (("speak", "stop", "--play"), "--play: ffplay could not play: no sound card"),
        (("transcribe", "none.wav"), "No such file or directory: 'none.wav'"),
        pytest.param(("transcribe", "out.wav"), "audio file", marks=pytest.mark.nightly),
    ],
)
def test_a_failure_is_a_line_and_a_status(
    arguments: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    (tmp_path / "out.wav").write_bytes(b"spoken before")
    programs = tmp_path / "programs"
    programs.mkdir()
    # As the real one does, it returns 0.
    (programs / "ffplay").write_text("#!/bin/sh\ncat >/dev/null\necho 'no sound card' >&2\n")
    (programs / "ffplay").chmod(0o755)
    failed = vllm(*arguments, cwd=tmp_path, PATH=f"{programs}:{os.environ['PATH']}")
    assert failed.returncode == 1 and failed.stdout == ""
    assert failed.stderr.startswith("error: ") and failed.stderr.count("\n") == 1
    assert told in failed.stderr
    assert (tmp_path / "out.wav").read_bytes() == b"spoken before"
    assert {path.name for path in tmp_path.iterdir()} == {"out.wav", "programs"}


class OddServer(http.server.BaseHTTPRequestHandler):
    """Answers by what the text says; keeps the last request."""

    protocol_version = "HTTP/1.1"
    seen: list[tuple[str, bytes]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        type(self).seen = [(str(self.headers), body)]
        if b"obey" in body:
            error = b'{"error": {"message": "no \\u001b[2J\\u202e voice"}}'
            return self._send(400, error)
        if b"break" in body:
            self.send_response(200)
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"4\r\nRIFF\r\n")
            self.close_connection = True
            return None
        return self._send(200, b'{"text": "heard \\u001b[31m it"}')

    def _send(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def odd() -> Iterator[str]:
    """The address of an odd server."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), OddServer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_what_a_server_sends_is_not_obeyed(odd: str, tmp_path: Path) -> None:
    failed = vllm("speak", "obey", "-o", "out.wav", "--url", odd, cwd=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr == "error: no �[2J� voice\n"
    name = 'a"\r\nx: 1\x1b.wav'
    (tmp_path / name).write_bytes(encode_whole("wav", [], 16000))  # type: ignore[arg-type]
    heard = vllm("transcribe", name, "--url", odd, cwd=tmp_path)
    assert (heard.returncode, heard.stdout) == (0, "heard �[31m it\n")
    ((headers, body),) = OddServer.seen
    assert f"bearer {KEY}" in headers.lower()
    assert b'filename="a___x: 1_.wav"\r\n' in body


def test_an_answer_that_breaks_off_is_a_failure(odd: str, tmp_path: Path) -> None:
    (tmp_path / "out.wav").write_bytes(b"spoken before")
    failed = vllm("speak", "break", "-o", "out.wav", "--url", odd, cwd=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"error: {odd}/v1/audio/speech: the answer broke off")
    assert (tmp_path / "out.wav").read_bytes() == b"spoken before"


def test_no_server_is_told_with_its_address(tmp_path: Path) -> None:
    for url in ("http://127.0.0.1:9", "no address", "ftp://127.0.0.1"):
        failed = vllm("speak", "hi", "--url", url, cwd=tmp_path)
        assert failed.returncode == 1
        assert failed.stderr.startswith(f"error: {url}/v1/audio/speech: ")
        assert not list(tmp_path.iterdir())
