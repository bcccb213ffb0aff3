# SPDX-License-Identifier: Apache-2.0
"""Transcriptions under load: what is sent, and what is made of the answers."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from benchmark_speech_serving import summarize_transcriptions
from speech_client import closed_loop
from transcription_client import Transcribed, Transcriber


def test_no_clip_is_sent_twice() -> None:
    bodies: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        # The parts of a form are told apart by a random line.
        boundary = request.headers["content-type"].split("boundary=")[1].encode()
        bodies.append(request.read().replace(boundary, b""))
        return httpx.Response(500 if len(bodies) == 5 else 200, json={"text": "two words"})

    async def run() -> list[Transcribed]:
        clips = [(np.full(800, 5000 + n, np.int16), 16000) for n in range(2)]
        transcriber = Transcriber("http://server", clips, max_tokens=7)
        transcriber._client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
        done, _ = await closed_loop(transcriber, 3, 20)
        await transcriber.close()
        return done

    done = asyncio.run(run())
    assert len(set(bodies)) == len(bodies) == 20
    assert all(b"max_completion_tokens" in body and b"RIFF" in body for body in bodies)
    assert sorted(one.outcome for one in done) == ["done"] * 19 + ["status 500"]
    assert {(one.words, one.seconds) for one in done if one.outcome == "done"} == {(2, 0.05)}


def test_figures_of_a_run() -> None:
    done = [Transcribed(0.0, 0.1 * n, 2.0, 3) for n in range(1, 11)]
    figures = summarize_transcriptions([*done, Transcribed(0.0, 9.0, 2.0, 0, "status 500")], 4.0)
    assert figures == {
        "requests": 11,
        "failed": 1,
        "answer_seconds": {"p50": 0.6, "p90": 1.0, "p99": 1.0},
        "words": 30,
        "requests_per_second": 2.5,
        "audio_seconds_per_second": 5.0,
        "audio_seconds": 20.0,
        "seconds": 4.0,
    }
