# SPDX-License-Identifier: Apache-2.0
"""The front end's side of audio: what each output of a request holds of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from vllm.sampling_params import RequestOutputKind
from vllm.unison.messages.streams import AudioOutput
from vllm.unison.metrics.audio_timing import AudioTimes

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreOutput
    from vllm.v1.metrics.stats import IterationStats, RequestStateStats


def join_audio(first: AudioOutput | None, second: AudioOutput | None) -> AudioOutput | None:
    """Two pieces of a request's audio as one."""
    pieces = [piece for piece in (first, second) if piece is not None]
    return _joined(pieces) if pieces else None


def _joined(pieces: list[AudioOutput]) -> AudioOutput:
    if len(pieces) == 1:
        return pieces[0]
    return AudioOutput(
        np.concatenate([piece.samples for piece in pieces]),
        pieces[0].sample_rate,
        np.concatenate([piece.codes for piece in pieces]),
    )


class _Growing:
    """An array that grows at its end, and shows what it holds without a copy.

    What has been shown is never written again, so it stays as it is.
    """

    def __init__(self, first: np.ndarray) -> None:
        self._held = first.copy()
        self._length = len(first)

    def append(self, items: np.ndarray) -> None:
        end = self._length + len(items)
        if end > len(self._held):
            grown = np.empty((2 * end, *self._held.shape[1:]), self._held.dtype)
            grown[: self._length] = self._held[: self._length]
            self._held = grown
        self._held[self._length : end] = items
        self._length = end

    def view(self) -> np.ndarray:
        shown = self._held[: self._length]
        shown.flags.writeable = False
        return shown


class AudioAssembly:
    """Collects a request's audio, and gives each output what its kind asks for.

    Args:
        output_kind: DELTA: what is new since the last output, None if nothing is. CUMULATIVE: all
            so far, None before the first. FINAL_ONLY: all, with the last output.
    """

    def __init__(self, output_kind: RequestOutputKind) -> None:
        self._kind = output_kind
        self._pieces: list[AudioOutput] = []
        self._sample_rate = 0
        self._samples: _Growing | None = None
        self._codes: _Growing | None = None
        self._times = AudioTimes()

    def add(
        self,
        output: EngineCoreOutput,
        iteration_stats: IterationStats | None,
        request_stats: RequestStateStats | None,
    ) -> None:
        """Add what an output of the engine's core holds of the audio."""
        audio = output.audio
        if iteration_stats is not None and request_stats is not None:
            now = iteration_stats.iteration_timestamp
            seconds = audio.seconds if audio is not None else 0.0
            stats = iteration_stats.audio
            self._times.observe(stats, now, request_stats.arrival_time, seconds, output.finished)
        if audio is None:
            return
        if self._kind != RequestOutputKind.CUMULATIVE:
            self._pieces.append(audio)
        elif self._samples is None or self._codes is None:
            self._sample_rate = audio.sample_rate
            self._samples, self._codes = _Growing(audio.samples), _Growing(audio.codes)
        else:
            self._samples.append(audio.samples)
            self._codes.append(audio.codes)

    def take(self, finished: bool) -> AudioOutput | None:
        """The audio of an output, which is the request's last one if `finished`."""
        if self._kind == RequestOutputKind.CUMULATIVE:
            if self._samples is None or self._codes is None:
                return None
            return AudioOutput(self._samples.view(), self._sample_rate, self._codes.view())
        if not self._pieces or (self._kind == RequestOutputKind.FINAL_ONLY and not finished):
            return None
        pieces, self._pieces = self._pieces, []
        return _joined(pieces)
