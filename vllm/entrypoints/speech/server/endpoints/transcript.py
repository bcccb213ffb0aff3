# SPDX-License-Identifier: Apache-2.0
"""The text of a clip from the requests for its parts, and the forms that clients ask for."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import add
from typing import Any

from vllm.entrypoints.speech.server.parts import join_texts
from vllm.entrypoints.speech.server.service import Generation, Usage


@dataclass
class Segment:
    """The text of a part.

    Attributes:
        start, end: of the part, in seconds of the clip.
        text: without space around it.
        token_ids: that the text was made of.
        temperature: at which they were sampled.
    """

    start: float
    end: float
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    temperature: float = 0.0


class Transcript:
    """The text of a clip's parts, in order, while the requests for all of them run.

    Args:
        generations: the parts' running requests.
        seconds: length of each part.

    Attributes:
        segments: one for each part, whose text grows with the deltas.
        request_id: of the first part, as clients see it.
        finish_reason: after the last delta: "length" if a part ended at its limit, else "stop".
    """

    def __init__(self, generations: Sequence[Generation], seconds: Sequence[float]) -> None:
        self._generations = generations
        self.segments: list[Segment] = []
        self.request_id = generations[0].request_id
        self.finish_reason = "stop"
        start = 0.0
        for generation, length in zip(generations, seconds, strict=True):
            segment = Segment(start, start + length, temperature=generation.temperature)
            self.segments.append(segment)
            start += length

    @property
    def text(self) -> str:
        """All text so far."""
        return join_texts([segment.text for segment in self.segments])

    @property
    def duration(self) -> float:
        """Seconds of the clip."""
        return self.segments[-1].end

    @property
    def usage(self) -> Usage:
        """What all parts took so far."""
        return reduce(add, (generation.usage for generation in self._generations))

    async def deltas(self) -> AsyncIterator[str]:
        """The pieces of the text as they become known; together they are `text`.

        Leaving ends the requests of all parts.
        """
        sent = 0
        try:
            for generation, segment in zip(self._generations, self.segments, strict=True):
                async for completion in generation:
                    segment.text += completion.text
                    segment.token_ids += generation.text_ids(completion)
                    if completion.finish_reason == "length":
                        self.finish_reason = "length"
                    # It grows at its end only: space there waits for what follows it.
                    text = self.text
                    if len(text) > sent:
                        yield text[sent:]
                        sent = len(text)
        finally:
            for generation in self._generations:
                await generation.aclose()

    def verbose(self, language: str | None) -> dict[str, Any]:
        """OpenAI's verbose_json, with a segment for each part.

        What the model does not give of a segment, `avg_logprob` and `no_speech_prob`, is 0.
        """
        return {
            "task": "transcribe",
            "language": language,
            "duration": self.duration,
            "text": self.text,
            "segments": [
                {
                    "id": index,
                    "seek": 0,
                    "start": segment.start,
                    "end": segment.end,
                    "text": segment.text,
                    "tokens": segment.token_ids,
                    "temperature": segment.temperature,
                    "avg_logprob": 0.0,
                    "compression_ratio": _compression_ratio(segment.text),
                    "no_speech_prob": 0.0,
                }
                for index, segment in enumerate(self.segments)
            ],
            "usage": {"type": "duration", "seconds": self.duration},
        }

    def srt(self) -> str:
        """Subtitles in SubRip's form."""
        cues = (f"{number}\n{times}\n{text}\n\n" for number, times, text in self._cues(","))
        return "".join(cues)

    def vtt(self) -> str:
        """Subtitles in WebVTT."""
        cues = (f"{times}\n{_escaped(text)}\n\n" for _, times, text in self._cues("."))
        return "WEBVTT\n\n" + "".join(cues)

    def _cues(self, point: str) -> list[tuple[int, str, str]]:
        """Number, times and text of each segment that has text; the text is one line."""
        spoken = [segment for segment in self.segments if segment.text.strip()]
        return [
            (
                number,
                f"{_clock(segment.start, point)} --> {_clock(segment.end, point)}",
                " ".join(segment.text.split()),
            )
            for number, segment in enumerate(spoken, start=1)
        ]


def _clock(seconds: float, point: str) -> str:
    """`00:01:02,345`."""
    total = round(seconds * 1000)
    minutes, milliseconds = divmod(total, 60_000)
    hours, minutes = divmod(minutes, 60)
    whole, thousandths = divmod(milliseconds, 1000)
    return f"{hours:02}:{minutes:02}:{whole:02}{point}{thousandths:03}"


def _escaped(text: str) -> str:
    """Text of a WebVTT cue, in which these characters begin markup."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _compression_ratio(text: str) -> float:
    data = text.encode(errors="replace")
    return len(data) / len(zlib.compress(data)) if data else 0.0
