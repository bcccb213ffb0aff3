# SPDX-License-Identifier: Apache-2.0
"""What docs/serving.md and README.md show of the server is run against one."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import wave
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tests.entrypoints.server import API_KEY, Server
from vllm.entrypoints.speech.encoding import encode_whole
from vllm.entrypoints.speech.media import AudioLimits
from vllm.entrypoints.speech.server.endpoints.speech_stream import (
    IDLE_SECONDS,
    MAX_FRAME_BYTES,
    MAX_WAITING_CHARACTERS,
    MAX_WAITING_UTTERANCES,
)
from vllm.entrypoints.speech.server.forms import MAX_FIELD_BYTES, MAX_FIELDS, MAX_FILES
from vllm.entrypoints.speech.server.routes import WITHOUT_AUDIO
from vllm.entrypoints.speech.server.schemas import MAX_INPUT_CHARACTERS
from vllm.entrypoints.speech.server.session_messages import MAX_TEXT_CHARACTERS, MESSAGES
from vllm.entrypoints.speech.voice_folder import RECORDINGS
from vllm.unison.frontend.clip_encoder import CACHED_CLIPS
from vllm.unison.messages.sampling_fields import RANGES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
SHELL = re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
PYTHON = {
    title: body for title, body in re.findall(r'```python title="(\w+)"\n(.*?)```', PAGE, re.DOTALL)
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with a question in it, and players that hear nothing."""
    for name in ("aplay", "ffplay"):
        (tmp_path / name).write_text("#!/bin/sh\ncat >/dev/null\n")
        (tmp_path / name).chmod(0o755)
    noise = (np.random.default_rng(2).standard_normal(8000) / 10).astype(np.float32)
    for name in ("question.wav", "somebody.wav"):
        (tmp_path / name).write_bytes(encode_whole("wav", noise, 16000))
    return tmp_path


def run(command: list[str], server: Server, folder: Path) -> str:
    place = {"OPENAI_API_KEY": API_KEY, "PATH": f"{folder}:{os.environ['PATH']}"}
    result = subprocess.run(
        [part.replace("http://localhost:8000", server.url) for part in command],
        cwd=folder,
        env=os.environ | place,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(SHELL)))
def test_the_commands_run(number: int, server: Server, folder: Path) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    main = f"{sys.executable} -m vllm.entrypoints.cli.main"
    script = f'set -eu\nvllm() {{ {main} "$@"; }}\n{SHELL[number]}'
    run(["bash", "-c", script], server, folder)
    for name in re.findall(r"(?:--output|>) (\w\S*)", SHELL[number]):
        assert (folder / name).stat().st_size > 500
        if name.endswith(".wav"):
            assert soundfile.info(folder / name).frames > 0


@pytest.mark.slow
@pytest.mark.parametrize("title", PYTHON)
def test_the_python_examples_run(title: str, server: Server, folder: Path) -> None:
    printed = run([sys.executable, "-c", PYTHON[title]], server, folder)
    assert printed.strip()
    if title == "chat":
        with wave.open(str(folder / "answer.wav")) as file:
            assert file.getnframes() > 0
        assert "audio_tokens=" in printed


@pytest.mark.slow
def test_the_metrics_on_the_page_are_the_server_s(server: Server) -> None:
    assert server.request("/v1/audio/speech", b'{"input": "hello"}')[0] == 200
    exposed = server.request("/metrics")[1].decode()
    names = re.findall(r"`(vllm:\w+)`", PAGE)
    assert len(names) == 8
    for name in names:
        assert re.search(rf"^{name}(_count)?[{{ ]", exposed, re.MULTILINE), name


def test_the_numbers_on_the_page_are_those_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CLIP_FILESIZE_MB", "DECODE_DURATION_S", "DECODE_BYTES"):
        monkeypatch.delenv(f"VLLM_MAX_AUDIO_{name}", raising=False)
    limits = AudioLimits.from_environment(1e9)
    assert f"| an audio file | {limits.file_bytes // 2**20} MiB |" in PAGE
    assert f"| its length | {limits.seconds:g} s, and in chat" in PAGE
    assert f"| its samples, decoded | {limits.decoded_bytes // 2**20} MiB |" in PAGE
    assert f"{MAX_INPUT_CHARACTERS} characters" in PAGE
    assert f"of up to {MAX_TEXT_CHARACTERS} characters, cut anywhere" in PAGE
    waiting = f"{MAX_WAITING_CHARACTERS} characters, {MAX_WAITING_UTTERANCES} utterances"
    assert f"| text of a session that waits to be spoken | {waiting} |" in PAGE
    assert f"| a session in which nothing happens | {IDLE_SECONDS / 60:g} minutes |" in PAGE
    assert f"at most {MAX_FRAME_BYTES // 2**10} KiB in each" in PAGE
    assert all(f'{{"type": "{kind}"' in PAGE for kind in MESSAGES)
    assert f"the codes of the last {CACHED_CLIPS} are kept" in PAGE
    assert f"| a form | {MAX_FIELDS} fields of {MAX_FIELD_BYTES // 2**10} KiB, " in PAGE
    assert f"each once, and {MAX_FILES} files |" in PAGE
    assert all(f"`{suffix}`" in PAGE for suffix in RECORDINGS[1:])
    (settings,) = re.findall(r"^\| `NAME.json`, optional \| (.*)$", PAGE, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", settings)) == {"name", "language", *RANGES}
    for path in WITHOUT_AUDIO:
        assert f"`{path}`" in PAGE
    for name in ("temperature", "guidance_scale"):
        assert f"| `{name}` | {RANGES[name].low} to {RANGES[name].high}; " in PAGE
    seed, tokens = RANGES["seed"], RANGES["max_tokens"]
    assert (seed.low, seed.high, tokens.high) == (-(2**63), 2**63 - 2, 2**31 - 1)
    assert RANGES["top_k"].low == -1 and RANGES["top_k"].high == tokens.high
    assert "| `seed` | −2⁶³ to 2⁶³ − 2; " in PAGE and "| `max_tokens` | 1 to 2³¹ − 1 frames" in PAGE
    assert "| `top_k` | −1 to 2³¹ − 1; " in PAGE
