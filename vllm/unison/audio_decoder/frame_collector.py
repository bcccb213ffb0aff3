# SPDX-License-Identifier: Apache-2.0
"""De-interleaves the frames of all streaming requests, step by step, without a loop over them.

A frame is complete when its most delayed stream has emitted its part. What the collector keeps per
slot is bounded: the steps that the delays span, and the frames that nobody has taken yet.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vllm.unison.audio_decoder.frames import NEVER, CodeReader
from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.phases import PhaseTable, StateKind


@dataclass(frozen=True)
class CollectedFrames:
    """What a step meant for the streaming requests among its rows.

    Attributes:
        rows: [num_streaming] rows of the step that hold a streaming request.
        failed: indices in rows of requests with a code outside the codebook that must fail.
        wrong_codes: [len(failed), num_codebooks] the codes that say so.
    """

    rows: NDArray[np.int64]
    failed: NDArray[np.int64]
    wrong_codes: NDArray[np.int32]


class FrameCollector:
    """Frames of the streaming requests by slot.

    Args:
        layout: the stream layout.
        table: its phase table.
        num_slots: slots that requests may hold.
        capacity: maximum number of frames that are complete and not taken.

    Attributes:
        is_active: [num_slots] whether the slot holds a request whose audio is streamed.
        num_frames: [num_slots] frames of the request that are complete.
        num_taken: [num_slots] frames that have been taken.
        had_audio: [num_slots] whether the request was in an audio phase at all.
    """

    def __init__(
        self, layout: StreamLayout, table: PhaseTable, num_slots: int, capacity: int
    ) -> None:
        self._reader = CodeReader(layout)
        self._delays = np.array(layout.delays, np.int64)
        self._streams = np.arange(layout.num_streams)
        self._max_delay = layout.max_delay
        self._table = table
        self._in_audio = np.isin(table.kind, (StateKind.AUDIO, StateKind.FLUSH))
        self._capacity = capacity
        self._span = layout.max_delay + 1
        self._steps = np.zeros((num_slots, self._span, layout.num_streams), np.int32)
        self._codes = np.zeros((num_slots, capacity, self._reader.num_codebooks), np.int32)
        self._position = np.zeros(num_slots, np.int64)
        self._begin = np.zeros(num_slots, np.int64)
        self._num_prompt = np.zeros(num_slots, np.int64)
        self._state = np.zeros(num_slots, np.int64)
        self._last = np.full(num_slots, NEVER)
        self.is_active = np.zeros(num_slots, np.bool_)
        self.num_frames = np.zeros(num_slots, np.int64)
        self.num_taken = np.zeros(num_slots, np.int64)
        self.had_audio = np.zeros(num_slots, np.bool_)

    def admit(
        self,
        slot: int,
        tokens: NDArray[np.int32],
        num_prompt: int,
        state: int,
        segment_start: int,
        last: int,
        num_frames: int,
        had_audio: bool,
    ) -> None:
        """Start to follow a request.

        Args:
            slot: the slot that it holds.
            tokens: [num_known, num_streams] ids of the request from position 0 on.
            num_prompt: length of its prompt.
            state: its state in the phase table.
            segment_start: position at which its current audio segment begins.
            last: position by which that segment's last frame is complete, if it is known.
            num_frames: frames that its tokens hold; they count as taken.
            had_audio: whether it was in an audio phase before.
        """
        known = len(tokens)
        for position in range(max(known - self._span, 0), known):
            self._steps[slot, position % self._span] = tokens[position]
        self._position[slot] = known
        self._num_prompt[slot] = num_prompt
        self._begin[slot] = max(segment_start, num_prompt)
        self._state[slot] = state
        self._last[slot] = last
        self.num_frames[slot] = self.num_taken[slot] = num_frames
        self.had_audio[slot] = had_audio
        self.is_active[slot] = True

    def release(self, slot: int) -> None:
        """Forget the request that held a slot."""
        self.is_active[slot] = False

    def update(
        self,
        slots: NDArray[np.int64],
        sampled: NDArray[np.bool_],
        tokens: NDArray[np.int32],
        state: NDArray[np.int64],
        segment_start: NDArray[np.int64],
    ) -> CollectedFrames:
        """Record what a step emitted.

        Args:
            slots: [num_rows] slot of each row.
            sampled: [num_rows] rows that emitted.
            tokens: [num_rows, num_streams] ids.
            state: [num_rows] state of the phase table after the step.
            segment_start: [num_rows] position at which the newest audio segment begins.
        """
        rows = np.flatnonzero(sampled & self.is_active[slots])
        own = slots[rows]
        position = self._position[own]
        self._steps[own, position % self._span] = tokens[rows]
        self._position[own] = position + 1
        in_audio = self._in_audio[self._state[own]]
        self.had_audio[own] |= in_audio

        last = self._last_positions(own, position, tokens[rows], state[rows])
        frame = position - self._max_delay
        complete = np.flatnonzero(in_audio & (frame >= self._begin[own]) & (position < last))
        failed = np.empty(0, np.int64)
        wrong = np.empty((0, self._reader.num_codebooks), np.int32)
        if len(complete):
            place = (frame[complete, None] + self._delays) % self._span
            ids = self._steps[own[complete, None], place, self._streams]
            codes, decoded, fails = self._reader.read(ids)
            failed, wrong = complete[fails], codes[fails]
            holders = own[complete[decoded]]
            if np.any(self.num_frames[holders] - self.num_taken[holders] >= self._capacity):
                raise RuntimeError("frames were not taken in time")
            self._codes[holders, self.num_frames[holders] % self._capacity] = codes[decoded]
            self.num_frames[holders] += 1
        self._state[own] = state[rows]
        in_flush = self._table.kind[state[rows]] == StateKind.FLUSH
        self._last[own] = np.where(in_flush, last, NEVER)
        self._begin[own] = np.maximum(segment_start[rows], self._num_prompt[own])
        return CollectedFrames(rows, failed, wrong)

    def _last_positions(
        self,
        slots: NDArray[np.int64],
        position: NDArray[np.int64],
        tokens: NDArray[np.int32],
        state: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Positions by which the segments' last frames are complete, after a step's tokens.

        Args:
            slots: [num_rows] of the rows.
            position: [num_rows] of the tokens.
            tokens: [num_rows, num_streams].
            state: [num_rows] after the tokens.
        """
        table, before = self._table, self._state[slots]
        any_ends, ended = table.any_ends[before] == 1, tokens == table.end_ids
        token = np.where(any_ends & ended.any(axis=1), table.end_ids[0], tokens[:, 0])
        after = table.next_state[before, table.token_class[token]]
        counts = position >= self._begin[slots] + table.first_step[before]
        in_audio = table.kind[before] == StateKind.AUDIO
        ends = in_audio & counts & (table.kind[after] == StateKind.FLUSH)
        # Where the limit ends audio without a flush, the frame of its last step is one.
        at_limit = in_audio & ~ends & (table.by_limit[state] == 1)
        end = position + np.where(at_limit, 1, table.end_shift[after])
        last = np.where(ends | at_limit, end + self._max_delay, self._last[slots])
        return np.where(any_ends & ended.all(axis=1), position, last)

    def take(self, slot: int) -> NDArray[np.int32]:
        """The [num_new, num_codebooks] codes of the frames completed since the last call."""
        frames = np.arange(self.num_taken[slot], self.num_frames[slot])
        self.num_taken[slot] = self.num_frames[slot]
        codes: NDArray[np.int32] = self._codes[slot, frames % self._capacity]
        return codes

    def describe(self, codes: NDArray[np.int32]) -> str:
        """What is wrong with the codes [num_codebooks] of a frame."""
        return self._reader.describe(codes)
