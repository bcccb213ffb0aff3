# SPDX-License-Identifier: Apache-2.0
"""What the engine's parts tell each other about streams."""

from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from vllm.unison.messages.conditioning import LaneConditioning


class AudioOutput(msgspec.Struct, array_like=True, gc=False):
    """A piece of a request's audio, or all of it.

    Crosses process boundaries as raw buffers; arrays that have done so are read-only.

    Attributes:
        samples: float32 waveform in [-1, 1]: [num_samples] of mono audio, [num_samples, 2] of
            stereo, left and right. So a length is one in time, whatever the channels.
        sample_rate: samples per second, in Hz.
        codes: [num_frames, num_codebooks] int32 codes that the waveform was decoded from.
    """

    samples: np.ndarray
    sample_rate: int
    codes: np.ndarray

    @property
    def num_channels(self) -> int:
        """Channels of the waveform."""
        return 1 if self.samples.ndim == 1 else int(self.samples.shape[1])

    @property
    def seconds(self) -> float:
        """Length of the waveform in seconds."""
        return len(self.samples) / self.sample_rate


class StreamInputs(msgspec.Struct, array_like=True, gc=False):
    """Front end to scheduler: what a request of a multi-stream model has besides its tokens.

    Attributes:
        auxiliary_ids: [num_steps, num_streams - 1] int32 ids of streams 1.. in the prompt; rows
            past the prompt are its delayed suffix, with -1 in cells that are free.
        text_slice: half-open range of text ids, or None for a model without text.
        num_flush_steps: steps that the request may take at most past max_tokens, while its delayed
            streams catch up.
        state: state of the phase table in which generation starts.
        segment_start: position at which the audio segment begins that the prompt ends in.
        encoder_input: what the conditional lane is conditioned on besides its tokens, if anything.
        start_phase: the phase in which generation starts, if the request's task says so and not
            its prompt.
    """

    auxiliary_ids: np.ndarray
    text_slice: tuple[int, int] | None
    num_flush_steps: int = 0
    state: int = 0
    segment_start: int = 0
    encoder_input: LaneConditioning | None = None
    start_phase: int | None = None


@dataclass
class StreamUpdate:
    """Scheduler to worker: the auxiliary streams of requests that (re)enter the worker's batch.

    Attributes:
        auxiliary_ids: per request id [num_steps, num_streams - 1] int32 ids of streams 1.. from
            position 0 on. Rows past the request's tokens are the prompt's delayed suffix, -1 in
            cells that are free.
        audio_frames: per request id, of those whose audio is streamed, the frames whose samples
            the scheduler has received.
        encoder_inputs: per request id, of those that have any, what it is conditioned on besides
            its tokens.
        start_phases: per request id, of those whose task says so, the phase that generation starts
            in.
    """

    auxiliary_ids: dict[str, NDArray[np.int32]] = field(default_factory=dict)
    audio_frames: dict[str, int] = field(default_factory=dict)
    encoder_inputs: dict[str, LaneConditioning] = field(default_factory=dict)
    start_phases: dict[str, int] = field(default_factory=dict)


@dataclass
class StreamOutput:
    """Worker to scheduler: what one step emitted, in the rows of the step's batch.

    Attributes:
        tokens: [num_rows, num_streams] int32 ids.
        finish: [num_rows] phases.Finish of each row after the step.
        state: [num_rows] state of the phase table after the step.
        segment_start: [num_rows] position at which the current (or last) audio segment begins.
        audio: per request id the audio that became ready with this step: what is new of a request
            whose audio is streamed, all of another one that ended.
        errors: per request id why it must fail.
    """

    tokens: NDArray[np.int32]
    finish: NDArray[Any]
    state: NDArray[np.int64]
    segment_start: NDArray[np.int64]
    audio: dict[str, AudioOutput] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)
