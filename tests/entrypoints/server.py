# SPDX-License-Identifier: Apache-2.0
"""A real server in a process of its own, on a small random model that never ends by itself."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vllm.entrypoints.speech.encoding import encode_whole
from vllm.unison.testing.random_checkpoint import (
    BEGIN_AUDIO,
    BEGIN_TEXT,
    SPEAKER,
    default_tasks,
    stream_layout,
    write_random_speech_lm,
)

MODEL_NAME = "speech"
API_KEY = "a-secret"
MAX_MODEL_LEN = 1024
MAX_QUEUED = 12
VOICES = {"heart": [6], "joe": [7, 8], "kate": [9]}
GUIDANCE_SCALE = 2.0
DEFAULT_TOKENS = 12
SAMPLE_RATE = 16000
SAMPLES_PER_FRAME = 320
RECORDED, SAID = "zoe", "good morning"
"""A recorded voice, and what is said in its recording."""
PATIENCE = 600
"""Seconds until a server counts as hung. A guard: no result depends on it."""

ENGINE_OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": True,
    "block_size": 32,
    "max_model_len": MAX_MODEL_LEN,
    "max_num_seqs": 16,
}


def write_model(folder: Path) -> Path:
    """A guided model with voices and a DAC, which goes on until its limit."""
    layout = stream_layout(4)
    for phase in layout["phases"]:
        phase["transitions"] = []
    tasks = default_tasks()
    parts: list[Any] = [[SPEAKER, "reference_text"], BEGIN_TEXT, "voice", "text", BEGIN_AUDIO]
    tasks["text_to_speech"] = parts
    defaults = {"guidance_scale": GUIDANCE_SCALE, "max_tokens": DEFAULT_TOKENS}
    return write_random_speech_lm(
        folder,
        layout=layout,
        more={
            "tasks": tasks,
            "voices": VOICES,
            "default_voice": "heart",
            "languages": ["en"],
            "generation_defaults": {
                "text_to_speech": defaults,
                "speech_to_text": {"max_tokens": DEFAULT_TOKENS},
                "voice_prompted_speech": {"max_tokens": DEFAULT_TOKENS},
            },
        },
    )


def recording() -> bytes:
    """A file of a second of noise."""
    noise = np.random.default_rng(6).standard_normal(SAMPLE_RATE) * 0.1
    return encode_whole("wav", noise.astype(np.float32), SAMPLE_RATE)


def write_voices(folder: Path) -> Path:
    """A folder with a recorded voice."""
    folder.mkdir(parents=True)
    (folder / f"{RECORDED}.wav").write_bytes(recording())
    (folder / f"{RECORDED}.txt").write_text(f"{SAID}\n")
    settings = {"name": "Zoë", "language": "en", "temperature": 0.5}
    (folder / f"{RECORDED}.json").write_text(json.dumps(settings))
    return folder


@dataclass
class Server:
    """A running server.

    Attributes:
        url: without a path.
        process: the server's.
        log: file of what it prints.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def request(
        self,
        path: str,
        data: bytes | None = None,
        *,
        key: str | None = API_KEY,
        headers: dict[str, str] | None = None,
    ) -> tuple[int, bytes]:
        """Status and body of a plain request; POST if there is data."""
        sent = {"content-type": "application/json"} | (headers or {})
        if key is not None:
            sent["authorization"] = f"Bearer {key}"
        request = urllib.request.Request(self.url + path, data=data, headers=sent)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


def free_port() -> int:
    """A port that nothing listens on, below those that the system gives to connections.

    A server binds it much later; until then no client and no other worker's server may take it.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as free, contextlib.suppress(OSError):
            free.bind(("127.0.0.1", port))
            return port


@contextlib.contextmanager
def running_server(model: Path, folder: Path, *more: str) -> Iterator[Server]:
    """`vllm serve` on a model, up while the context lasts."""
    with started_server(model, folder, *more) as server:
        wait_until_up(server)
        yield server


@contextlib.contextmanager
def started_server(model: Path, folder: Path, *more: str) -> Iterator[Server]:
    """`vllm serve` on a model, which is not up yet."""
    port = free_port()
    options = [f"--{name.replace('_', '-')}={value}" for name, value in ENGINE_OPTIONS.items()]
    options = [option.removesuffix("=True") for option in options]
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model), *options),
        *("--host", "127.0.0.1", "--port", str(port), "--served-model-name", MODEL_NAME),
        *("--api-key", API_KEY, "--max-num-queued-reqs", str(MAX_QUEUED), *more),
    ]
    settings = {
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_SERVER_DEV_MODE": "1",
        "VLLM_MAX_AUDIO_CLIP_FILESIZE_MB": "2",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
    }
    environment = {k: v for k, v in os.environ.items() if k != "VLLM_ENABLE_V1_MULTIPROCESSING"}
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, env=environment | settings, stdout=output, stderr=output, cwd=folder
        )
    server = Server(f"http://127.0.0.1:{port}", process, log)
    try:
        yield server
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(30)


def wait_until_up(server: Server) -> None:
    while server.process.poll() is None:
        with contextlib.suppress(OSError):
            if server.request("/health")[0] == 200:
                return
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.process.wait(0.2)
    raise RuntimeError(server.log.read_text(errors="replace")[-4000:])
