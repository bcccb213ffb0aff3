# SPDX-License-Identifier: Apache-2.0
"""A client that listens to streamed speech and notes when each piece of it came."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import httpx

SENTENCES = (
    "Stop!",
    "Call me again.",
    "There is no milk left.",
    "Please open the green door.",
    "Nobody knew where the money had gone.",
    "The train leaves Leeds at half past nine.",
    "The old man walked slowly along the river.",
    "Tomorrow it will rain in the north of the country.",
)
"""Short and long ones."""
BYTES_PER_SAMPLE = 2

Answer = TypeVar("Answer", covariant=True)


@dataclass
class Heard:
    """One request, as its client heard it. Times in seconds.

    Attributes:
        sent: when it was sent, on the clock of the run.
        first: from there to the first samples; None if none came.
        last: from there to the last samples.
        seconds: of audio.
        underruns: pieces that came later than a player needs them that starts with the first one,
            and goes on where it stopped.
        buffer: by how much a player must start later to have no underrun.
        outcome: "done", "cancelled", or what went wrong.
    """

    sent: float
    first: float | None = None
    last: float = 0.0
    seconds: float = 0.0
    underruns: int = 0
    buffer: float = 0.0
    outcome: str = "done"
    _dry: float = field(default=0.0, repr=False)
    _started: float = field(default=0.0, repr=False)

    def hear(self, now: float, seconds: float) -> None:
        """A piece of so many seconds has come, `now` seconds after the request was sent."""
        if self.first is None:
            self.first = self._dry = self._started = now
        else:
            self.buffer = max(self.buffer, now - self._started - self.seconds)
            if now > self._dry:
                self.underruns += 1
                self._dry = now
        self._dry += seconds
        self.seconds += seconds
        self.last = now

    @property
    def real_time_factor(self) -> float | None:
        """Seconds taken per second of audio."""
        return self.last / self.seconds if self.seconds else None


class Listener:
    """Sends requests to one server.

    Args:
        url: of the server, without a path.
        body: of POST /v1/audio/speech, without input and seed.
        seed: of the texts.
    """

    def __init__(self, url: str, body: dict[str, Any], seed: int = 0) -> None:
        self._url = f"{url.rstrip('/')}/v1/audio/speech"
        self._body = body | {"response_format": "pcm"}
        self._seeds = itertools.count(seed * 1_000_000)
        self._random = random.Random(seed)
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        self._client = httpx.AsyncClient(limits=limits, timeout=600)

    async def listen(self, sent: float, cancel_after: float | None = None) -> Heard:
        """Send a request and listen to its end, or leave after so many seconds."""
        heard = Heard(sent)
        text = self._random.choice(SENTENCES)
        try:
            async with asyncio.timeout(cancel_after):
                await self._stream(heard, self._body | {"input": text, "seed": next(self._seeds)})
        except TimeoutError:
            heard.outcome = "cancelled"
        except httpx.HTTPError as error:
            heard.outcome = f"{type(error).__name__}: {error}"
        return heard

    async def _stream(self, heard: Heard, body: dict[str, Any]) -> None:
        start = time.perf_counter()
        async with self._client.stream("POST", self._url, json=body) as response:
            if response.status_code != 200:
                heard.outcome = f"status {response.status_code}"
                return
            rate = int(response.headers["content-type"].split("rate=")[1].split(";")[0])
            odd = 0
            async for piece in response.aiter_raw():
                samples, odd = divmod(len(piece) + odd, BYTES_PER_SAMPLE)
                heard.hear(time.perf_counter() - start, samples / rate)

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()


class Client(Protocol[Answer]):
    """Sends a request and waits for its end."""

    async def listen(self, sent: float) -> Answer:
        """The answer to a request sent at a time on the clock of the run."""
        ...


async def closed_loop(
    listener: Client[Answer], clients: int, requests: int
) -> tuple[list[Answer], float]:
    """So many clients, each sending its next request when the last one has ended.

    Returns:
        What was heard, and the seconds that it took.
    """
    start = time.perf_counter()
    numbers = iter(range(requests))
    heard: list[Answer] = []

    async def client() -> None:
        for _ in numbers:
            heard.append(await listener.listen(time.perf_counter() - start))

    await asyncio.gather(*(client() for _ in range(clients)))
    return heard, time.perf_counter() - start


async def poisson(
    listener: Listener, rate: float, requests: int, seed: int
) -> tuple[list[Heard], float]:
    """Requests that come whether or not others have ended, `rate` a second on average.

    Returns:
        What was heard, and the seconds that it took.
    """
    start = time.perf_counter()
    tasks = []
    async for sent in _arrivals(rate, requests, seed, start):
        tasks.append(asyncio.create_task(listener.listen(sent)))
    heard = await asyncio.gather(*tasks)
    return heard, time.perf_counter() - start


async def _arrivals(rate: float, count: int, seed: int, start: float) -> AsyncIterator[float]:
    for due in _times(rate, count, seed):
        await asyncio.sleep(max(0.0, due - (time.perf_counter() - start)))
        yield time.perf_counter() - start


def _times(rate: float, count: int, seed: int) -> Iterator[float]:
    source = random.Random(seed)
    due = 0.0
    for _ in range(count):
        yield due
        due += source.expovariate(rate)
