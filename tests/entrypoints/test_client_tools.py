# SPDX-License-Identifier: Apache-2.0
"""Upstream's own tools meet the packaged model: against a server, and with engines of their own."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import wave
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.entrypoints.server import RECORDED, Server
from tests.support.demonstration import SENTENCE
from vllm.entrypoints.speech.encoding import encode_whole
from vllm.unison.packaged_model import DEFAULT_MODEL

pytestmark = pytest.mark.slow

MAIN = (sys.executable, "-m", "vllm.entrypoints.cli.main")
OFFLINE = """
import os, socket
connect = socket.socket.connect

def only_here(self, address):
    # Datagrams: connecting one finds this machine's own address and sends nothing.
    streams = self.family != socket.AF_UNIX and self.type & socket.SOCK_STREAM
    if streams and address[0] not in ("127.0.0.1", "::1", "localhost"):
        open(os.environ["REACHED"], "a").write(repr(address))
        raise OSError("no network")
    return connect(self, address)

socket.socket.connect = only_here
names = socket.getaddrinfo

def only_names_here(host, *args, **kwargs):
    if host not in (None, "", "127.0.0.1", "::1", "localhost", "0.0.0.0", socket.gethostname()):
        open(os.environ["REACHED"], "a").write(repr(host))
        raise OSError("no network")
    return names(host, *args, **kwargs)

socket.getaddrinfo = only_names_here
"""
"""Notes whoever looks beyond this machine, which clients of hubs try again for minutes."""


def vllm(
    *arguments: str, folder: Path, status: int = 0, **more: str
) -> subprocess.CompletedProcess[str]:
    (folder / "site").mkdir(exist_ok=True)
    (folder / "site" / "sitecustomize.py").write_text(OFFLINE)
    search = [str(folder / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    drop = {"VLLM_ENABLE_V1_MULTIPROCESSING", "HF_HUB_OFFLINE", "OPENAI_API_KEY"}
    environment = {name: value for name, value in os.environ.items() if name not in drop}
    settings = {
        "PYTHONPATH": os.pathsep.join(search),
        "REACHED": str(folder / "reached"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_STREAM": "ext://sys.stderr",
    }
    done = subprocess.run(
        [*MAIN, *arguments],
        cwd=folder,
        env=environment | settings | more,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status, (done.stdout + done.stderr)[-3000:]
    assert not (folder / "reached").exists(), (folder / "reached").read_text()
    return done


@pytest.fixture(scope="module")
def clip(packaged: Server) -> bytes:
    """A sentence of the model's own."""
    status, data = packaged.request(
        "/v1/audio/speech",
        json.dumps({"input": SENTENCE, "response_format": "pcm"}).encode(),
    )
    assert status == 200
    samples = np.frombuffer(data, "<i2").astype(np.float32) / np.float32(32768)
    return encode_whole("wav", samples, 16000)


def bench(
    backend: str, route: str, lines: list[Any], server: Server, folder: Path, *more: str
) -> Any:
    """The file of results of `vllm bench serve`."""
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    name = "custom_audio" if "audio" in lines[0] else "custom"
    done = vllm(
        *("bench", "serve", "--backend", backend, "--endpoint", route, "--base-url", server.url),
        *("--model", DEFAULT_MODEL, "--dataset-name", name, "--dataset-path", "prompts.jsonl"),
        *("--num-prompts", str(len(lines)), "--skip-chat-template", "--save-result"),
        *("--save-detailed", "--result-filename", "result.json", "--disable-tqdm"),
        *("--custom-output-len", "100", *more),
        folder=folder,
    )
    return json.loads((folder / "result.json").read_text()) | {"printed": done.stdout}


def test_bench_serve_counts_speech(packaged: Server, tmp_path: Path) -> None:
    lines = [
        {"prompt": SENTENCE},
        {"prompt": "stop"},
        {"prompt": "one two three"},
    ]
    result = bench("openai-speech", "/v1/audio/speech", lines, packaged, tmp_path)
    assert (result["completed"], result["failed"]) == (3, 0)
    seconds = result["audio_seconds"]
    assert len(seconds) == 3 and all(0.3 < one < 10 for one in seconds)
    # 25 frames a second, and the end token and the delayed streams on top.
    for length, one in zip(result["output_lens"], seconds, strict=True):
        assert 25 * one <= length <= 25 * one + 12
    factors = [t / s for t, s in zip(result["latencies"], seconds, strict=True)]
    assert result["mean_rtf"] == pytest.approx(np.mean(factors))
    assert result["mean_ttfa_ms"] == pytest.approx(1000 * np.mean(result["ttfts"]))
    gaps = [gap for one in result["itls"] for gap in one]
    assert gaps and result["median_audio_gap_ms"] == pytest.approx(1000 * np.median(gaps))
    assert result["rtfx"] == pytest.approx(sum(seconds) / result["duration"])
    for text in ("time to first audio (ms):", "gap between pieces (ms):", "real-time factor:"):
        assert f"Mean {text}" in result["printed"] and f"P99 {text}" in result["printed"]


@pytest.mark.nightly
def test_bench_serve_transcribes(packaged: Server, clip: bytes, tmp_path: Path) -> None:
    (tmp_path / "clip.wav").write_bytes(clip)
    lines = [{"prompt": "", "audio": str(tmp_path / "clip.wav")}] * 2
    result = bench("openai-audio", "/v1/audio/transcriptions", lines, packaged, tmp_path)
    assert (result["completed"], result["failed"]) == (2, 0), result["errors"]
    assert result["generated_texts"] == [SENTENCE] * 2
    assert all(4 <= length <= 12 for length in result["output_lens"])
    assert all(ttft > 0 for ttft in result["ttfts"]) and result["rtfx"] > 0


@pytest.mark.nightly
def test_bench_serve_chats_with_audio(packaged: Server, clip: bytes, tmp_path: Path) -> None:
    (tmp_path / "clip.wav").write_bytes(clip)
    lines = [{"prompt": "", "audio": str(tmp_path / "clip.wav")}] * 2
    more = "--enable-multimodal-chat"
    result = bench("openai-chat", "/v1/chat/completions", lines, packaged, tmp_path, more)
    assert (result["completed"], result["failed"]) == (2, 0), result["errors"]
    assert result["generated_texts"] == [SENTENCE] * 2


def test_bench_serve_tells_what_is_refused(packaged: Server, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "stop"}\n')
    done = vllm(
        *("bench", "serve", "--backend", "openai-speech", "--endpoint", "/v1/audio/speech"),
        *("--base-url", packaged.url, "--model", DEFAULT_MODEL, "--dataset-name", "custom"),
        *("--dataset-path", "prompts.jsonl", "--num-prompts", "1", "--skip-chat-template"),
        *("--ready-check-timeout-sec", "0", "--extra-body", '{"voice": "bob"}'),
        folder=tmp_path,
    )
    assert "voice must be one of" in done.stdout


@pytest.mark.parametrize("command", ["complete", pytest.param("chat", marks=pytest.mark.nightly)])
def test_clients_of_text_are_told_the_way_out(
    command: str, packaged: Server, tmp_path: Path
) -> None:
    url = f"{packaged.url}/v1"
    refused = vllm(command, "--url", url, "-q", "hello", folder=tmp_path, status=1)
    error, way_out = refused.stderr.strip().splitlines()[-2:]
    assert error.startswith("error: ") and "Traceback" not in refused.stderr
    assert f"vllm speak TEXT --url {packaged.url}, or" in way_out
    assert f"vllm transcribe FILE --url {packaged.url}" in way_out


def test_run_batch_answers_on_four_routes(clip: bytes, tmp_path: Path) -> None:
    data = base64.b64encode(clip).decode()
    audio = {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}}
    message = {"role": "user", "content": [audio]}
    url = f"data:audio/wav;base64,{data}"
    bodies: list[tuple[str, Any]] = [
        (
            "audio/speech",
            {"input": SENTENCE, "voice": "joe"},
        ),
        ("audio/speech", {"input": "stop", "response_format": "flac"}),
        ("audio/transcriptions", {"file_url": url, "model": DEFAULT_MODEL, "temperature": 0}),
        ("audio/transcriptions", {"file_url": url, "response_format": "text"}),
        ("chat/completions", {"messages": [message]}),
        ("audio/generations", {"prompt": "stop", "n": 2, "response_format": "flac"}),
        ("audio/speech", {"input": "stop", "voice": "bob"}),
        ("audio/speech", {"input": "stop", "stream_format": "sse"}),
        ("audio/speech", {"input": "stop", "ref_audio": url}),
        ("audio/transcriptions", {"file_url": "file:///etc/passwd"}),
        ("audio/transcriptions", {"file": data}),
        ("embeddings", {"input": "stop"}),
    ]
    lines = [
        json.dumps({"custom_id": f"{n}", "method": "POST", "url": f"/v1/{route}", "body": body})
        for n, (route, body) in enumerate(bodies)
    ]
    (tmp_path / "in.jsonl").write_text("\n".join([*lines, "", "{}", "no JSON"]) + "\n")
    vllm(
        *("run-batch", "-i", "in.jsonl", "-o", "out.jsonl", "--model", DEFAULT_MODEL),
        "--enforce-eager",
        folder=tmp_path,
    )
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [a["custom_id"] for a in answers] == [*map(str, range(len(bodies))), "", ""]
    assert [a["response"]["status_code"] for a in answers] == [200] * 6 + [400] * 8
    spoken, flac, heard, plain, chat, two = (a["response"]["body"] for a in answers[:6])
    assert all(a["error"] is None for a in answers[:6])
    assert [base64.b64decode(clip["b64_json"])[:4] for clip in two["data"]] == [b"fLaC"] * 2
    assert spoken["content_type"] == "audio/wav" and flac["content_type"] == "audio/flac"
    assert base64.b64decode(flac["data"]).startswith(b"fLaC")
    with wave.open(BytesIO(base64.b64decode(spoken["data"]))) as file:
        assert 0.5 < file.getnframes() / file.getframerate() < 10
    assert heard["text"] == plain["text"] == SENTENCE
    assert chat["choices"][0]["message"]["content"] == SENTENCE
    params = [a["error"]["error"]["param"] for a in answers[6:]]
    speech, rest = ["voice", "stream_format", "ref_audio"], ["file_url", "file_url", "url"]
    assert params == [*speech, *rest, "custom_id", None]
    assert all(a["response"]["body"] is None for a in answers[6:])


@pytest.mark.nightly
def test_run_batch_speaks_with_recorded_voices(
    served_model: Path, voices: Path, tmp_path: Path
) -> None:
    bodies = [{"input": "stop", "voice": name} for name in (RECORDED, "nova", "bob")]
    lines = [
        json.dumps({"custom_id": f"{n}", "url": "/v1/audio/speech", "body": body | {"seed": 1}})
        for n, body in enumerate(bodies)
    ]
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    vllm(
        *("run-batch", "-i", "in.jsonl", "-o", "out.jsonl", "--model", str(served_model)),
        *("--voices", str(voices), "--voice-alias", f"nova={RECORDED}", "--enforce-eager"),
        folder=tmp_path,
    )
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [a["response"]["status_code"] for a in answers] == [200, 200, 400]
    named, alias, _ = (a["response"]["body"] for a in answers)
    assert named["content_type"] == "audio/wav" and named == alias
    assert answers[2]["error"]["error"]["param"] == "voice"


@pytest.mark.nightly
def test_bench_throughput_knows_the_name(tmp_path: Path) -> None:
    vllm(
        *("bench", "throughput", "--model", DEFAULT_MODEL, "--dataset-name", "random"),
        *("--random-input-len", "8", "--random-output-len", "20", "--num-prompts", "4"),
        *("--enforce-eager", "--output-json", "result.json"),
        folder=tmp_path,
    )
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["num_requests"] == 4 and result["tokens_per_second"] > 0


@pytest.mark.nightly
def test_bench_latency_knows_the_name(tmp_path: Path) -> None:
    vllm(
        *("bench", "latency", "--model", DEFAULT_MODEL, "--input-len", "8", "--output-len", "10"),
        *("--batch-size", "2", "--num-iters", "2", "--num-iters-warmup", "1", "--enforce-eager"),
        *("--output-json", "result.json"),
        folder=tmp_path,
    )
    assert len(json.loads((tmp_path / "result.json").read_text())["latencies"]) == 2
