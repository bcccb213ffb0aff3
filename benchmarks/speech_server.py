# SPDX-License-Identifier: Apache-2.0
"""A server of a speech model for a benchmark, and what can be seen of it from outside."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from prometheus_client.parser import text_string_to_metric_families

START_SECONDS = 600


@dataclass(frozen=True)
class Footprint:
    """What a server holds.

    Attributes:
        memory_mib: resident memory of its processes.
        handles: open files, sockets and pipes of its processes.
        kv_cache_usage: share of KV blocks in use, as the newest step reported it.
        running, waiting: requests.
    """

    memory_mib: float
    handles: int
    kv_cache_usage: float
    running: int
    waiting: int


class SpeechServer:
    """A running server.

    Args:
        url: without a path.
        pid: of its first process; 0 if that is elsewhere.
    """

    def __init__(self, url: str, pid: int = 0) -> None:
        self.url = url
        self._pid = pid

    def footprint(self) -> Footprint:
        """What it holds now."""
        processes = _family(self._pid) if self._pid else []
        metrics = self.metrics()
        return Footprint(
            memory_mib=sum(map(_resident_mib, processes)),
            handles=sum(map(_handles, processes)),
            kv_cache_usage=metrics.get("vllm:kv_cache_usage_perc", 0.0),
            running=int(metrics.get("vllm:num_requests_running", 0)),
            waiting=int(metrics.get("vllm:num_requests_waiting", 0)),
        )

    def metrics(self) -> dict[str, float]:
        """Its metrics by name, summed over labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as response:
            text = response.read().decode()
        values: dict[str, float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                values[sample.name] = values.get(sample.name, 0.0) + sample.value
        return values

    def blocks_are_free(self) -> bool:
        """Whether no request holds a KV block: only then can the prefix cache be reset."""
        request = urllib.request.Request(f"{self.url}/reset_prefix_cache", data=b"")
        with urllib.request.urlopen(request, timeout=60) as response:
            return bool(json.load(response)["success"])


@contextlib.contextmanager
def running_server(model: Path, options: Sequence[str], log: Path) -> Iterator[SpeechServer]:
    """`vllm serve` on a model, up while the context lasts.

    Raises:
        RuntimeError: with the end of its log, if it does not come up.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(model), *options]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", "speech"]
    settings = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=os.environ | settings,
            stdout=output,
            stderr=output,
            # A group of its own, to be ended as a whole, but no session: Linux shares processors
            # between sessions, and lets a client that is alone in one wait for hundreds of
            # milliseconds while the model's threads keep the cores busy.
            preexec_fn=os.setpgrp,
        )
    try:
        server = SpeechServer(f"http://127.0.0.1:{port}", process.pid)
        _wait(server, process, log)
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(server: SpeechServer, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{server.url}/health", timeout=5).close()
            return
        time.sleep(0.5)
    raise RuntimeError(f"the server did not start:\n{log.read_text(errors='replace')[-3000:]}")


def _family(pid: int) -> list[psutil.Process]:
    """A process and its descendants."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _resident_mib(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.Error):
        return float(process.memory_info().rss) / 2**20
    return 0.0


def _handles(process: psutil.Process) -> int:
    with contextlib.suppress(psutil.Error):
        return int(process.num_fds())
    return 0
