# SPDX-License-Identifier: Apache-2.0
"""A client that has speech transcribed and notes how long each answer took."""

from __future__ import annotations

import io
import itertools
import time
import wave
from collections.abc import Sequence
from dataclasses import dataclass

import httpx
import numpy as np
from numpy.typing import NDArray
from speech_client import SENTENCES

Clip = tuple[NDArray[np.int16], int]
"""Samples [num_samples] and their rate in Hz."""


@dataclass(frozen=True)
class Transcribed:
    """One request. Times in seconds.

    Attributes:
        sent: when it was sent, on the clock of the run.
        took: from there to the whole answer.
        seconds: of audio.
        words: in the answer.
        outcome: "done", or what went wrong.
    """

    sent: float
    took: float
    seconds: float
    words: int
    outcome: str = "done"


async def spoken_clips(url: str, max_tokens: int, count: int = 16) -> list[Clip]:
    """Speech of the server's own model, each clip of another sentence or seed."""
    clips: list[Clip] = []
    async with httpx.AsyncClient(timeout=600) as client:
        for seed in range(count):
            body = {
                "input": SENTENCES[seed % len(SENTENCES)],
                "seed": seed,
                "max_tokens": max_tokens,
                "response_format": "pcm",
            }
            response = await client.post(f"{url.rstrip('/')}/v1/audio/speech", json=body)
            response.raise_for_status()
            rate = int(response.headers["content-type"].split("rate=")[1].split(";")[0])
            samples = np.frombuffer(response.content, "<i2")
            if len(samples):
                clips.append((samples, rate))
    return clips


def wav(samples: NDArray[np.int16], rate: int) -> bytes:
    """A mono file."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples.astype("<i2").tobytes())
    return buffer.getvalue()


class Transcriber:
    """Sends clips to one server, each request another one: the server keeps codes of known clips.

    Args:
        url: of the server, without a path.
        clips: what is sent, in turn, a little softer each time.
        max_tokens: maximum number of tokens of text.
    """

    def __init__(self, url: str, clips: Sequence[Clip], max_tokens: int) -> None:
        self._url = f"{url.rstrip('/')}/v1/audio/transcriptions"
        self._clips = clips
        self._fields = {"max_completion_tokens": str(max_tokens)}
        self._numbers = itertools.count()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._client = httpx.AsyncClient(limits=limits, timeout=600)

    async def listen(self, sent: float) -> Transcribed:
        """Have the next clip transcribed."""
        number = next(self._numbers)
        samples, rate = self._clips[number % len(self._clips)]
        softer = np.round(samples * 0.9995**number).astype(np.int16)
        file = {"file": ("clip.wav", wav(softer, rate))}
        seconds, start = len(samples) / rate, time.perf_counter()
        try:
            response = await self._client.post(self._url, data=self._fields, files=file)
        except httpx.HTTPError as error:
            took = time.perf_counter() - start
            return Transcribed(sent, took, seconds, 0, f"{type(error).__name__}: {error}")
        took = time.perf_counter() - start
        if response.status_code != 200:
            return Transcribed(sent, took, seconds, 0, f"status {response.status_code}")
        return Transcribed(sent, took, seconds, len(response.json()["text"].split()))

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()
