# SPDX-License-Identifier: Apache-2.0
"""Decodes the audio of streaming requests in chunks, while their frames are being made.

After each step of the model the executor is told what the step emitted. Requests whose next chunk
is complete, context included, are decoded together: stage by stage, all windows of one shape in
one call. Only new samples leave it.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vllm.tracing import instrument
from vllm.unison.audio_decoder.chunk_schedule import ChunkSchedule
from vllm.unison.audio_decoder.codec_stream import CodecStream, HostCopy, codec_stream_for
from vllm.unison.audio_decoder.decode_state import RequestDecodeState
from vllm.unison.audio_decoder.frame_collector import FrameCollector
from vllm.unison.audio_decoder.frames import (
    CodeError,
    CodeReader,
    frames_of_segments,
    last_position,
    segments_so_far,
)
from vllm.unison.audio_decoder.pipeline import StagePipeline
from vllm.unison.audio_decoder.windows import frames_needed
from vllm.unison.codecs.base import Codec
from vllm.unison.messages.streams import AudioOutput
from vllm.unison.model.layout import StreamLayout
from vllm.unison.model.phases import Finish, PhaseTable, Replay

TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
"""Set in the processes of an engine whose server sends traces. Each call of the codec then is a
span; without it none is made, as a step has no time for what nobody sees."""


@dataclass
class AudioStep:
    """What the executor has to say after a step.

    Attributes:
        audio: per request id the audio that is ready.
        errors: per request id why it must fail.
    """

    audio: dict[str, AudioOutput] = field(default_factory=dict)
    errors: dict[str, str] = field(default_factory=dict)


@dataclass
class _Due:
    """A request with something to decode.

    Attributes:
        stream: the request's state.
        slot: that it holds.
        stops: frame counts up to which to decode, one after the other.
        ends: whether its audio has ended.
    """

    stream: RequestDecodeState
    slot: int
    stops: list[int]
    ends: bool


@dataclass
class Admission:
    """A request whose audio begins, or continues, to be streamed.

    Attributes:
        request_id: of the request.
        slot: that it holds.
        tokens: [num_known, num_streams] ids of its prompt and what it has emitted.
        num_prompt: length of its prompt.
        replayed: what the tokens say.
        num_emitted: frames whose samples have reached the scheduler.
    """

    request_id: str
    slot: int
    tokens: NDArray[np.int32]
    num_prompt: int
    replayed: Replay
    num_emitted: int


@dataclass
class _Change:
    """A change of the batch.

    Attributes:
        num_before: steps launched before it.
        kept: requests that stay.
        admissions: requests that enter.
    """

    num_before: int
    kept: set[str]
    admissions: Sequence[Admission]


class AudioExecutor:
    """Streams the audio of requests.

    With asynchronous scheduling the batch changes for a step before the output of the step before
    is read, perhaps by another thread. What was launched with a request in the batch must still
    find its audio there (it may turn out to have ended). So changes of the batch take effect in
    order with the steps: after those that were launched before have been read.

    Args:
        codec: the model's codec; it must give decoder_stages.
        layout: the stream layout.
        table: its phase table.
        policy: sizes of chunks.
        num_slots: slots that requests may hold.
        codec_stream: where the codec runs; default: as befits the codec's device.
    """

    def __init__(
        self,
        codec: Codec,
        layout: StreamLayout,
        table: PhaseTable,
        policy: ChunkSchedule,
        num_slots: int,
        codec_stream: CodecStream | None = None,
    ) -> None:
        stages = codec.decoder_stages()
        if stages is None:
            raise ValueError("codec: this one cannot be decoded in parts")
        self._codec = codec
        self._layout = layout
        self._table = table
        self._policy = policy
        self._codec_stream = codec_stream or codec_stream_for(codec.device)
        self._pipeline = StagePipeline(stages, self._codec_stream)
        self._contexts = self._pipeline.contexts
        self._no_samples: NDArray[np.float32] = codec.no_samples().cpu().numpy()
        self._reader = CodeReader(layout)
        max_pending = policy.chunk_frames + frames_needed(self._contexts, 1)
        self._collector = FrameCollector(layout, table, num_slots, max_pending + 1)
        self._due_at = np.zeros(num_slots, np.int64)
        self._copies: dict[int, list[tuple[int, HostCopy]]] = {}
        self._streams: dict[int, RequestDecodeState] = {}
        self._slot_of: dict[str, int] = {}
        self._ended: set[str] = set()
        self._changes: deque[_Change] = deque()
        self._num_launched = 0
        self._num_read = 0
        self._lock = threading.Lock()
        if os.environ.get(TRACES_ENDPOINT):
            self._decode = instrument(  # type: ignore[method-assign]
                self._decode, span_name="speech.codec"
            )

    def num_streams(self) -> int:
        """Requests that the executor holds state of."""
        return len(self._streams)

    def num_bytes(self) -> int:
        """Memory of their contexts, states excluded."""
        return sum(stream.num_bytes() for stream in self._streams.values())

    def holds(self, request_id: str) -> bool:
        """Whether a request's audio is streamed, until it is released."""
        return request_id in self._slot_of or request_id in self._ended

    def change_batch(self, kept: set[str], admissions: Sequence[Admission]) -> None:
        """Forget all requests that are not among `kept`, and add those that enter."""
        with self._lock:
            self._changes.append(_Change(self._num_launched, kept, admissions))
            self._apply_changes()

    def launch(self) -> None:
        """A step has been launched; its output will be given to `step`."""
        with self._lock:
            self._num_launched += 1

    def _apply_changes(self) -> None:
        while self._changes and self._changes[0].num_before <= self._num_read:
            change = self._changes.popleft()
            for request_id in self._slot_of.keys() - change.kept:
                self._release(request_id)
            self._ended &= change.kept
            for admission in change.admissions:
                self._admit(admission)

    def _release(self, request_id: str) -> None:
        slot = self._slot_of.pop(request_id)
        self._collector.release(slot)
        del self._streams[slot], self._copies[slot]

    def _admit(self, new: Admission) -> None:
        segments = segments_so_far(self._table, new.replayed, new.num_prompt, len(new.tokens))
        frames = frames_of_segments(self._layout, new.tokens, segments)
        num_emitted, error = new.num_emitted, None
        try:
            codes = self._reader.codes(frames)
        except CodeError as wrong:
            # Said with the next step that the request is in.
            codes, num_emitted, error = self._reader.none, 0, f"the codec failed: {wrong}"
        stream = RequestDecodeState(
            new.request_id, self._contexts, self._pipeline.has_state, codes, num_emitted
        )
        stream.error = error
        slot = new.slot
        self._slot_of[new.request_id] = slot
        self._streams[slot] = stream
        self._copies[slot] = []
        self._collector.admit(
            slot,
            new.tokens,
            new.num_prompt,
            new.replayed.state,
            new.replayed.segment_start,
            last_position(self._table, new.replayed.state, new.replayed.flush_end),
            len(codes),
            bool(segments),
        )
        self._due_at[slot] = self._next_due(num_emitted) if error is None else 0

    def _next_due(self, num_emitted: int) -> int:
        return frames_needed(self._contexts, self._policy.boundary_after(num_emitted))

    def step(
        self,
        slots: NDArray[np.int64],
        sampled: NDArray[np.bool_],
        tokens: NDArray[np.int32],
        state: NDArray[np.int64],
        segment_start: NDArray[np.int64],
        finish: NDArray[Any],
    ) -> AudioStep:
        """Record what a step emitted, and decode what has become due.

        Args:
            slots: [num_rows] slot of each row.
            sampled: [num_rows] rows that emitted.
            tokens: [num_rows, num_streams] ids.
            state: [num_rows] state of the phase table after the step.
            segment_start: [num_rows] position at which the newest audio segment begins.
            finish: [num_rows] phases.Finish; a request that failed gives no more audio.

        Returns:
            Audio and errors of requests in the step. What is decoded and still on its way to the
            host comes with a later step, at the latest with the one that ends the request.
        """
        result = AudioStep()
        with self._lock:
            self._apply_changes()
            broken = sampled & (finish == Finish.ERROR)
            for slot in slots[broken].tolist():
                if slot in self._streams:
                    self._end(self._streams[slot].request_id)
            sampled = sampled & ~broken
            due, ending = self._collect_due(
                result, slots, sampled, tokens, state, segment_start, finish
            )
        if due:
            self._decode(due)
        with self._lock:
            self._emit_ready(result, slots[sampled], {d.slot for d in due}, ending)
            self._num_read += 1
            self._apply_changes()
        return result

    def _collect_due(
        self,
        result: AudioStep,
        slots: NDArray[np.int64],
        sampled: NDArray[np.bool_],
        tokens: NDArray[np.int32],
        state: NDArray[np.int64],
        segment_start: NDArray[np.int64],
        finish: NDArray[Any],
    ) -> tuple[list[_Due], set[int]]:
        """Requests with something to decode, and the slots of those that end with this step."""
        tracked = self._collector.update(slots, sampled, tokens, state, segment_start)
        own = slots[tracked.rows]
        for index, codes in zip(tracked.failed, tracked.wrong_codes, strict=True):
            slot = int(own[index])
            frame = self._collector.num_frames[slot]
            reason = f"frame {frame} {self._collector.describe(codes)}"
            self._fail(result, slot, f"the codec failed: {reason}")
        ended = finish[tracked.rows] != Finish.NOT_FINISHED
        is_due = (self._collector.num_frames[own] >= self._due_at[own]) | ended
        due, ending = [], set()
        for index in np.flatnonzero(is_due & self._collector.is_active[own]):
            slot = int(own[index])
            stream = self._streams[slot]
            if stream.error is not None:
                self._fail(result, slot, stream.error)
                continue
            stream.feed(self._collector.take(slot))
            ends = bool(ended[index])
            stops = self._stops(stream, ends)
            if ends:
                ending.add(slot)
                self._collector.release(slot)
            else:
                reached = stops[-1] if stops else stream.num_emitted
                self._due_at[slot] = self._next_due(reached)
            if stops:
                due.append(_Due(stream, slot, stops, ends))
        return due, ending

    def _stops(self, stream: RequestDecodeState, ends: bool) -> list[int]:
        """Chunk boundaries up to which a request can be decoded now.

        For one that went on after an interruption they begin before what has been emitted: stages
        with a state go through all frames again, in pieces of bounded size.
        """
        start = min(stage.num_done for stage in stream.stages)
        if ends:
            stops = self._policy.boundaries(start, stream.num_frames)
            if stream.num_frames > start and (not stops or stops[-1] < stream.num_frames):
                stops.append(stream.num_frames)
            return stops
        boundaries = self._policy.boundaries(start, stream.num_frames)
        return [b for b in boundaries if frames_needed(self._contexts, b) <= stream.num_frames]

    def _decode(self, due: Sequence[_Due]) -> None:
        """Decode up to every stop of every request; samples and errors end up in the streams."""
        with self._codec_stream.running():
            self._pipeline.decode([(one.stream, one.stops) for one in due])
            for one in due:
                if one.stream.samples and one.stream.error is None:
                    samples = torch.cat(one.stream.samples)
                    one.stream.samples = []
                    transfer = self._codec_stream.fetch(samples.flatten(0, 1))
                    self._copies[one.slot].append((len(samples), transfer))

    def _emit_ready(
        self,
        result: AudioStep,
        sampled_slots: NDArray[np.int64],
        due: set[int],
        ending: set[int],
    ) -> None:
        """Put what is on the host into the result; wait for all that ending requests have."""
        here = {*sampled_slots.tolist()} if any(self._copies.values()) else set()
        for slot in sorted((here | ending | due) & self._streams.keys()):
            stream = self._streams[slot]
            if stream.error is not None:
                self._fail(result, slot, stream.error)
                continue
            pending = self._copies[slot]
            ready, num_frames = [], 0
            while pending and (slot in ending or pending[0][1].is_done()):
                count, transfer = pending.pop(0)
                ready.append(transfer.wait())
                num_frames += count
            ends = slot in ending
            # Audio without a frame is told once, at the end.
            empty = ends and stream.num_frames == 0 and self._collector.had_audio[slot]
            if ready or empty:
                samples = np.concatenate(ready) if ready else self._no_samples
                codes = stream.take_codes(num_frames)
                result.audio[stream.request_id] = AudioOutput(
                    samples, self._codec.sample_rate, codes
                )
            if ends:
                self._end(stream.request_id)

    def _fail(self, result: AudioStep, slot: int, reason: str) -> None:
        request_id = self._streams[slot].request_id
        result.errors[request_id] = reason
        self._end(request_id)

    def _end(self, request_id: str) -> None:
        self._release(request_id)
        self._ended.add(request_id)
