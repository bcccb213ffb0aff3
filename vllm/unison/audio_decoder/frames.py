# SPDX-License-Identifier: Apache-2.0
"""From the tokens of a request to the codes of its audio frames."""

import numpy as np
from numpy.typing import NDArray

from vllm.unison.model.delay_pattern import deinterleave
from vllm.unison.model.layout import DROP_FRAME, FAIL_REQUEST, StreamLayout
from vllm.unison.model.phases import PhaseTable, Replay, Segment, StateKind

NEVER = np.iinfo(np.int64).max // 2
"""A position that has not come."""


class CodeError(ValueError):
    """A frame has a code outside the codebook, and the layout says that its request fails."""


def frames_of_segments(
    layout: StreamLayout, tokens: NDArray[np.int32], segments: tuple[Segment, ...]
) -> NDArray[np.int32]:
    """The generated frames of a request's audio segments, one after the other.

    Args:
        layout: the stream layout.
        tokens: [num_steps, num_streams] ids of the request from position 0 on.
        segments: its audio segments.

    Returns:
        [num_frames, num_streams] int32 ids.
    """
    frames = [np.empty((0, layout.num_streams), np.int32)]
    for segment in segments:
        stop = segment.start + segment.num_frames + layout.max_delay
        whole = deinterleave(tokens[segment.start : stop], layout.delays, segment.num_frames)
        frames.append(whole[segment.first_generated :])
    return np.concatenate(frames)


def segments_so_far(
    table: PhaseTable, replayed: Replay, num_prompt: int, num_known: int
) -> tuple[Segment, ...]:
    """The segments of a request that may still be in one: that one's whole frames come last.

    Args:
        table: the phase table.
        replayed: what the request's tokens say.
        num_prompt: length of its prompt.
        num_known: length of its prompt and what it has emitted.
    """
    if table.kind[replayed.state] not in (StateKind.AUDIO, StateKind.FLUSH):
        return replayed.segments
    start = replayed.segment_start
    end = min(num_known, last_position(table, replayed.state, replayed.flush_end))
    count = max(end - start - table.max_delay, 0)
    first = min(max(num_prompt - start, 0), count)
    return (*replayed.segments, Segment(start, count, first))


def last_position(table: PhaseTable, state: int, flush_end: int) -> int:
    """Position by which the last stream has emitted the last frame; NEVER while that is open."""
    return flush_end if table.kind[state] == StateKind.FLUSH else NEVER


class CodeReader:
    """Reads codes out of frames, and applies the layout's rule to those outside their codebook.

    Args:
        layout: the stream layout.
    """

    def __init__(self, layout: StreamLayout) -> None:
        self._streams = list(layout.codebook_streams)
        slices = np.array([layout.slices[stream] for stream in self._streams], np.int32)
        self._begins, self._sizes = slices[:, 0], slices[:, 1] - slices[:, 0]
        self._rule = layout.outside_codebook

    @property
    def num_codebooks(self) -> int:
        """Codes per frame."""
        return len(self._streams)

    @property
    def none(self) -> NDArray[np.int32]:
        """The codes of no frames: [0, num_codebooks]."""
        return np.empty((0, self.num_codebooks), np.int32)

    def read(
        self, frames: NDArray[np.int32]
    ) -> tuple[NDArray[np.int32], NDArray[np.bool_], NDArray[np.bool_]]:
        """Codes of frames, which need not belong to one request.

        Args:
            frames: [num_frames, num_streams] ids.

        Returns:
            Codes [num_frames, num_codebooks] int32; [num_frames] whether the frame is decoded (its
            codes are then all in their codebooks); [num_frames] whether its request fails.
        """
        codes = frames[:, self._streams] - self._begins
        outside = (codes < 0) | (codes >= self._sizes)
        broken: NDArray[np.bool_] = np.any(outside, axis=1)
        none = np.zeros(len(codes), np.bool_)
        if not broken.any():
            return codes, ~none, none
        if self._rule == FAIL_REQUEST:
            return codes, ~broken, broken
        if self._rule == DROP_FRAME:
            return codes, ~broken, none
        codes[outside] = self._rule
        return codes, ~none, none

    def codes(self, frames: NDArray[np.int32]) -> NDArray[np.int32]:
        """Codes [num_decoded, num_codebooks] of one request's frames.

        Raises:
            CodeError: if a code lies outside its codebook and the layout has requests fail.
        """
        codes, decoded, failed = self.read(frames)
        if failed.any():
            frame = int(np.flatnonzero(failed)[0])
            raise CodeError(f"frame {frame} {self.describe(codes[frame])}")
        return np.ascontiguousarray(codes[decoded])

    def describe(self, codes: NDArray[np.int32]) -> str:
        """What is wrong with the codes [num_codebooks] of a frame."""
        outside = (codes < 0) | (codes >= self._sizes)
        book = int(np.flatnonzero(outside)[0])
        return (
            f"has code {codes[book]} in codebook {book}, which must be in "
            f"[0, {self._sizes[book] - 1}]"
        )
