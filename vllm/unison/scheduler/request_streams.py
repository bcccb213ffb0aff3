# SPDX-License-Identifier: Apache-2.0
"""The scheduler's side of a multi-stream request: its auxiliary ids, and how it ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vllm.sampling_params import RequestOutputKind
from vllm.unison.messages.conditioning import LaneConditioning
from vllm.unison.messages.streams import AudioOutput, StreamInputs, StreamOutput, StreamUpdate
from vllm.unison.model.phases import Finish

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request


class RequestStreams:
    """Auxiliary ids of one request, from its prompt on, and what the worker said of its end.

    The scheduler owns them: they enter the hash of each block, and go to the worker again whenever
    the request re-enters its batch, so nothing is lost by preemption.

    Args:
        prompt: [num_steps, num_streams - 1] int32; rows past the prompt are its delayed suffix, in
            which -1 marks free cells.
        num_prompt_tokens: length of the prompt.
        num_flush_steps: maximum number of steps that it may take past max_tokens.
        state: state of the phase table in which generation starts.
        segment_start: position at which the audio segment begins that the prompt ends in.
        encoder_input: what the request is conditioned on besides its tokens, if anything.
        start_phase: the phase in which generation starts, if its task says so.
    """

    def __init__(
        self,
        prompt: NDArray[np.int32],
        num_prompt_tokens: int,
        num_flush_steps: int = 0,
        state: int = 0,
        segment_start: int = 0,
        encoder_input: LaneConditioning | None = None,
        start_phase: int | None = None,
    ) -> None:
        if prompt.ndim != 2 or len(prompt) < num_prompt_tokens:
            raise ValueError(
                f"auxiliary_token_ids must have shape [n, num_streams - 1] with n >= "
                f"{num_prompt_tokens}, the prompt's length, not {list(prompt.shape)}"
            )
        self._num_flush_steps = num_flush_steps
        self.state = state
        self.segment_start = segment_start
        self.encoder_input = encoder_input
        self.start_phase = start_phase
        self._block_prefix = b"" if encoder_input is None else encoder_input.key
        self._ids = np.array(prompt, np.int32)
        self._suffix_end = len(prompt)
        self._length = num_prompt_tokens
        self.finish = Finish.NOT_FINISHED
        self.error: str | None = None
        self.audio: AudioOutput | None = None
        self.num_audio_frames = 0
        """Frames whose samples the worker has sent."""

    def max_steps(self, max_tokens: int) -> int:
        """Most steps that the request generates, its flush included."""
        return max_tokens + self._num_flush_steps

    def append(self, request_id: str, output: StreamOutput | None, row: int) -> None:
        """Record what a step emitted for this request, before its blocks are hashed."""
        if output is None:
            raise RuntimeError("the worker returned no streams for a multi-stream request")
        self.append_ids(output.tokens[row : row + 1, 1:])
        self.state = int(output.state[row])
        self.segment_start = int(output.segment_start[row])
        self.finish = Finish(int(output.finish[row]))
        self.audio = output.audio.get(request_id)
        if self.audio is not None:
            self.take_audio(self.audio)
        self.error = output.errors.get(request_id)

    def take_audio(self, audio: AudioOutput) -> None:
        """Count the frames of a piece of audio that the worker has sent."""
        self.num_audio_frames += len(audio.codes)

    def append_ids(self, ids: NDArray[np.int32]) -> None:
        """Append [num_new, num_streams - 1] ids."""
        end = self._length + len(ids)
        if end > len(self._ids):
            grown = np.empty((2 * end + 64, self._ids.shape[1]), np.int32)
            grown[: len(self._ids)] = self._ids
            self._ids = grown
        self._ids[self._length : end] = ids
        self._length = end

    def last_ids(self, count: int) -> NDArray[np.int32]:
        """[count, num_streams - 1] newest ids."""
        return self._ids[self._length - count : self._length]

    def ids(self) -> NDArray[np.int32]:
        """[num_steps, num_streams - 1] ids known so far, the prompt's delayed suffix included."""
        return self._ids[: max(self._length, self._suffix_end)].copy()

    def block_key(self, start: int, end: int) -> bytes:
        """What positions [start, end) hold besides stream 0, as a part of that block's hash.

        That is the auxiliary ids, and what the request is conditioned on.
        """
        if end > self._length:
            raise RuntimeError(f"block [{start}, {end}) is hashed before its streams are known")
        return self._block_prefix + self._ids[start:end].tobytes()


def make_request_streams(
    inputs: StreamInputs | None, prompt_token_ids: list[int] | None
) -> RequestStreams | None:
    """Streams of a new request, or None for a request of a single-stream model."""
    if inputs is None:
        return None
    return RequestStreams(
        inputs.auxiliary_ids,
        len(prompt_token_ids or ()),
        inputs.num_flush_steps,
        inputs.state,
        inputs.segment_start,
        inputs.encoder_input,
        inputs.start_phase,
    )


def block_keys(request: Request, start: int, end: int) -> list[bytes]:
    """What the auxiliary streams add to the hash of the block [start, end) of a request."""
    return [] if request.streams is None else [request.streams.block_key(start, end)]


def stop_of_streams(request: Request) -> bool:
    """Whether a multi-stream request has ended, by the worker's word; sets its status if so."""
    from vllm.v1.request import RequestStatus

    streams = request.streams
    assert streams is not None
    if streams.finish is Finish.NOT_FINISHED:
        return False
    request.status = {
        Finish.STOP: RequestStatus.FINISHED_STOPPED,
        Finish.LENGTH: RequestStatus.FINISHED_LENGTH_CAPPED,
        Finish.ERROR: RequestStatus.FINISHED_ERROR,
    }[streams.finish]
    if streams.error is not None:
        request.stop_reason = streams.error
    return True


def make_stream_update(
    scheduler_output: SchedulerOutput, requests: dict[str, Request]
) -> StreamUpdate | None:
    """Auxiliary ids of the requests that enter the worker's batch with this step."""
    entering = [new.req_id for new in scheduler_output.scheduled_new_reqs]
    entering += scheduler_output.scheduled_cached_reqs.all_token_ids
    if not entering:
        return None
    update = StreamUpdate()
    for request_id in entering:
        enter_worker(update, request_id, requests[request_id], has_audio=True)
    return update if update.auxiliary_ids else None


def enter_worker(update: StreamUpdate, lane_id: str, request: Request, has_audio: bool) -> None:
    """Tell the worker of a row that enters its batch.

    Args:
        update: what the worker is told.
        lane_id: the row's id.
        request: the row's request, or that of its lane.
        has_audio: whether the row's audio is wanted (a guidance lane's is not).
    """
    if request.streams is None:
        return
    update.auxiliary_ids[lane_id] = request.streams.ids()
    if request.streams.encoder_input is not None:
        update.encoder_inputs[lane_id] = request.streams.encoder_input
    if request.streams.start_phase is not None:
        update.start_phases[lane_id] = request.streams.start_phase
    params = request.sampling_params
    if has_audio and params is not None and params.output_kind != RequestOutputKind.FINAL_ONLY:
        update.audio_frames[lane_id] = request.streams.num_audio_frames
