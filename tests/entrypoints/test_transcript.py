# SPDX-License-Identifier: Apache-2.0
"""Transcripts of clips in parts: joined text, times, and the forms that clients ask for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from vllm.entrypoints.speech.server.endpoints.transcript import Segment, Transcript
from vllm.entrypoints.speech.server.service import Generation, Usage
from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.spec import SpeechSpec
from vllm.unison.testing.random_checkpoint import FIRST_TEXT, stream_layout

SPEC = SpeechSpec(StreamLayout.from_dict(stream_layout(3)))
ENDED: list[int] = []


async def outputs(texts: Sequence[str], number: int) -> AsyncGenerator[Any, None]:
    try:
        for index, text in enumerate(texts):
            reason = "stop" if index == len(texts) - 1 else None
            completion = SimpleNamespace(
                text=text,
                token_ids=[FIRST_TEXT + index, 1],
                audio=None,
                finish_reason=reason,
                stop_reason=None,
            )
            yield SimpleNamespace(outputs=[completion])
    finally:
        ENDED.append(number)


async def transcript(*parts: Sequence[str], seconds: float = 1.5) -> Transcript:
    ENDED.clear()
    generations = []
    for number, texts in enumerate(parts):
        usage = Usage(prompt_tokens=10, prompt_frames=8, prompt_seconds=seconds)
        made = Generation(outputs(texts, number), f"part-{number}", SPEC, usage, 0.4)
        await made.begin()
        generations.append(made)
    return Transcript(generations, [seconds] * len(parts))


def read(*parts: Sequence[str], seconds: float = 1.5) -> tuple[list[str], Transcript]:
    async def run() -> tuple[list[str], Transcript]:
        made = await transcript(*parts, seconds=seconds)
        return [delta async for delta in made.deltas()], made

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ((["one ", "two"],), "one two"),
        (([" one", " "],), " one "),
        ((["one ", " "], [" two", " ", "three "]), "one two three"),
        (([""], ["one"], [" ", ""], ["two", ""]), "one two"),
        (([" "], [""]), ""),
    ],
)
def test_deltas_are_the_joined_text(parts: tuple[list[str], ...], text: str) -> None:
    deltas, made = read(*parts)
    assert ("".join(deltas), made.text) == (text, text)
    assert all(deltas)


def test_a_single_part_is_streamed_as_it_comes() -> None:
    assert read(["a ", "b", " "])[0] == ["a ", "b", " "]


def test_usage_is_that_of_all_parts() -> None:
    _, made = read(["a", "b"], ["c", "d", "e"], seconds=2.0)
    assert made.usage == Usage(
        prompt_tokens=20,
        prompt_frames=16,
        prompt_seconds=4.0,
        completion_tokens=10,
        text_tokens=5,
    )


def test_leaving_ends_all_parts() -> None:
    async def run() -> None:
        made = await transcript(["a", "b"], ["c", "d"], ["e"])
        deltas = made.deltas()
        await anext(deltas)
        await deltas.aclose()  # type: ignore[attr-defined]

    asyncio.run(run())
    assert sorted(ENDED) == [0, 1, 2]


def test_verbose_json_has_a_segment_for_each_part() -> None:
    _, made = read(["ab" * 50], ["c"], seconds=2.5)
    body = made.verbose("en")
    segments = body.pop("segments")
    assert body == {
        "task": "transcribe",
        "language": "en",
        "duration": 5.0,
        "text": "ab" * 50 + " c",
        "usage": {"type": "duration", "seconds": 5.0},
    }
    assert [(s["id"], s["start"], s["end"], s["text"]) for s in segments] == [
        (0, 0.0, 2.5, "ab" * 50),
        (1, 2.5, 5.0, "c"),
    ]
    assert segments[0]["tokens"] == [FIRST_TEXT] and segments[0]["temperature"] == 0.4
    assert segments[0]["compression_ratio"] > 5 > 1 > segments[1]["compression_ratio"] > 0


def test_subtitles() -> None:
    _, made = read(["a <b>\n\n& --> c"], [" "], ["last"], seconds=3725.5)
    assert made.srt() == (
        "1\n00:00:00,000 --> 01:02:05,500\na <b> & --> c\n\n"
        "2\n02:04:11,000 --> 03:06:16,500\nlast\n\n"
    )
    assert made.vtt() == (
        "WEBVTT\n\n"
        "00:00:00.000 --> 01:02:05.500\na &lt;b&gt; &amp; --&gt; c\n\n"
        "02:04:11.000 --> 03:06:16.500\nlast\n\n"
    )
    _, silent = read([""])
    assert (silent.srt(), silent.vtt()) == ("", "WEBVTT\n\n")


def test_times_are_rounded_to_milliseconds_and_carried() -> None:
    _, made = read(["a"], ["b"], seconds=59.9996)
    assert "00:00:00,000 --> 00:01:00,000" in made.srt()
    assert isinstance(made.segments[0], Segment)
