# SPDX-License-Identifier: Apache-2.0
"""What benchmarks see of a server from outside, and how they count words."""

from __future__ import annotations

import http.server
import subprocess
import sys
import threading

import pytest

from benchmarks import speech_server
from benchmarks.speech_evaluator import word_error_rate

METRICS = b"""# HELP vllm:kv_cache_usage_perc KV-cache usage. 1 means 100 percent usage.
# TYPE vllm:kv_cache_usage_perc gauge
vllm:kv_cache_usage_perc{engine="0",model_name="a name, with \\"quotes\\" {}"} 0.25
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0"} 3.0
vllm:num_requests_running{engine="1"} 4.0
# TYPE vllm:request_success_total counter
vllm:request_success_total{finished_reason="stop"} 1.2e+01 1700000000000
"""


class Metrics(http.server.BaseHTTPRequestHandler):
    """A server that exposes METRICS."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(METRICS)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server():
    listening = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Metrics)
    threading.Thread(target=listening.serve_forever, daemon=True).start()
    code = (
        "import subprocess, sys\n"
        "child = [sys.executable, '-c', 'print(flush=True); input()']\n"
        "child = subprocess.Popen(child, stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print('up', flush=True)\n"
        "input()\n"
        "child.communicate(b'\\n')\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout is not None and process.stdout.readline() == b"up\n"
    yield speech_server.SpeechServer(f"http://127.0.0.1:{listening.server_port}", process.pid)
    process.communicate(b"\n")
    listening.shutdown()
    listening.server_close()


def test_metrics_are_summed_over_labels(server: speech_server.SpeechServer) -> None:
    assert server.metrics() == {
        "vllm:kv_cache_usage_perc": 0.25,
        "vllm:num_requests_running": 7.0,
        "vllm:request_success_total": 12.0,
    }


def test_a_footprint_counts_all_processes(server: speech_server.SpeechServer) -> None:
    whole = server.footprint()
    assert (whole.kv_cache_usage, whole.running, whole.waiting) == (0.25, 7, 0)
    family = speech_server._family(server._pid)
    assert len(family) == 2
    assert whole.handles == sum(process.num_fds() for process in family) >= 6
    assert 4 < whole.memory_mib < 500
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert speech_server._family(gone.pid) == []


def test_word_errors_are_counted_over_all_sentences() -> None:
    references = ["one two three four", "please stop", "go"]
    heard = ["one three four five", "please stop", ""]
    # One deletion and one insertion, none, and a deletion, of seven words.
    assert word_error_rate(references, heard) == pytest.approx(3 / 7)
    assert word_error_rate(["one"], ["two three"]) == 2
