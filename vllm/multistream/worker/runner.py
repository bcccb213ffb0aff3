# SPDX-License-Identifier: Apache-2.0
"""What a V1 model runner does differently for a multi-stream model.

`multistream_runner` derives from the runner class of the platform. Everything that is not glue to
the V1 runner lives in the modules beside this one and in vllm.guidance.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from vllm.distributed import get_tensor_model_parallel_rank
from vllm.guidance.worker import GuidedBatch, GuidedRunner
from vllm.logger import init_logger
from vllm.multistream.acoustic.chunk_policy import ChunkPolicy
from vllm.multistream.acoustic.executor import AcousticExecutor, Admission
from vllm.multistream.acoustic.pipeline import check_stages
from vllm.multistream.acoustic.whole import WholeDecoder
from vllm.multistream.messages import StreamOutput
from vllm.multistream.phases import Finish, replay
from vllm.multistream.spec import multistream_spec
from vllm.multistream.worker.sampler import StreamSampler
from vllm.multistream.worker.state import StreamState, steps_of, stream_limit
from vllm.multistream.worker.stream_step import StepTokens
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput, SamplerOutput

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.core.sched.output import SchedulerOutput

logger = init_logger(__name__)


def multistream_runner(base: type, vllm_config: VllmConfig) -> type:
    """The runner class for a model, derived from its platform's V1 runner."""
    if multistream_spec(vllm_config.model_config) is None:
        return type(f"Guided{base.__name__}", (GuidedRunner, base), {})
    return type(f"MultiStream{base.__name__}", (_MultiStreamRunner, base), {})


class _NoEvent:
    """Stands for the event of a copy that never needs waiting for."""

    def record(self) -> None:
        pass

    def synchronize(self) -> None:
        pass


class HostAsyncOutput(AsyncModelRunnerOutput):
    """Asynchronous output on a device whose tensors the host reads directly (the CPU).

    Takes the arguments of the V1 runner's own class for CUDA devices.
    """

    def __init__(
        self,
        model_runner_output: ModelRunnerOutput,
        sampled_token_ids: torch.Tensor,
        invalid_req_indices: list[int],
        **_ignored: Any,
    ) -> None:
        self._output = model_runner_output
        self._invalid = invalid_req_indices
        self.sampled_token_ids_cpu = sampled_token_ids
        self.async_copy_ready_event = _NoEvent()

    def get_output(self) -> ModelRunnerOutput:
        """The output with the step's tokens filled in."""
        token_ids = self.sampled_token_ids_cpu.tolist()
        for row in self._invalid:
            token_ids[row].clear()
        self._output.sampled_token_ids = token_ids
        return self._output


class _PendingStreams:
    """A step's streams on their way to the host."""

    def __init__(
        self,
        step: StepTokens,
        request_ids: list[str],
        slots: NDArray[np.int64],
        kept: NDArray[np.bool_],
        copy_stream: torch.cuda.Stream | None,
    ) -> None:
        self.request_ids = request_ids
        self.slots = slots
        self.kept = kept
        self._step = step  # keeps the device tensors alive until they are copied
        self._ready: torch.cuda.Event | None = None
        parts = (step.tokens, step.outcome)
        self._host: tuple[torch.Tensor, ...] | None = None
        if step.tokens.device.type == "cpu":
            pass
        elif copy_stream is None:
            self._host = tuple(part.cpu() for part in parts)
        else:
            self._ready = torch.cuda.Event(blocking=True)
            launched = torch.cuda.current_stream()
            with torch.cuda.stream(copy_stream):
                copy_stream.wait_stream(launched)
                self._host = tuple(part.to("cpu", non_blocking=True) for part in parts)
                self._ready.record()

    def wait(self) -> list[NDArray[Any]]:
        """Tokens, finish, state and segment start as numpy arrays, once they are on the host."""
        if self._ready is not None:
            self._ready.synchronize()
        if self._host is None:
            tokens, outcome = self._step.host
            return [tokens, *outcome]
        return [part.numpy() for part in (self._host[0], *self._host[1])]


class _AsyncStreamsOutput(AsyncModelRunnerOutput):
    """The V1 runner's asynchronous output, completed with the step's streams."""

    def __init__(
        self, inner: AsyncModelRunnerOutput, runner: _MultiStreamRunner, pending: _PendingStreams
    ) -> None:
        self._inner = inner
        self._runner = runner
        self._pending = pending

    def get_output(self) -> ModelRunnerOutput:
        """The completed output; waits for the copies."""
        output = self._inner.get_output()
        output.streams = self._runner.collect_streams(self._pending)
        return output


class _MultiStreamRunner(GuidedRunner):
    """Mixed in before a V1 runner class; overrides the runner's own methods only."""

    # The host may read device memory directly, so every row's state is known at once.
    _host_is_device = False

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        super().load_model(*args, **kwargs)  # type: ignore[misc]
        this: Any = self
        spec = multistream_spec(this.vllm_config.model_config)
        assert spec is not None
        this.model.prepare_streams()
        self._spec = spec
        self._host_is_device = this.device.type == "cpu"
        if self._host_is_device:
            this.async_output_class = HostAsyncOutput
        self._streams = StreamState(
            spec.layout, spec.table, this.max_num_reqs, this.max_model_len, this.device
        )
        self._stream_sampler = StreamSampler(spec.layout, spec.table, self._streams)
        self._step: StepTokens | None = None
        self._delays = np.array(spec.layout.delays)
        self._decoder: WholeDecoder | None = None
        self._audio: AcousticExecutor | None = None
        self._decoded: set[str] = set()
        # Only the first rank's output reaches the scheduler.
        if spec.has_codec and get_tensor_model_parallel_rank() == 0:
            codec = spec.load_codec(this.device)
            self._decoder = WholeDecoder(codec, spec.layout)
            if codec.decoder_stages() is not None:
                check_stages(codec)
                policy = ChunkPolicy.from_config(this.vllm_config.additional_config)
                num_slots = self._streams.scratch_slot
                self._audio = AcousticExecutor(codec, spec.layout, spec.table, policy, num_slots)

    def _get_or_create_async_output_copy_stream(self) -> Any:
        if self._host_is_device:
            return None
        return super()._get_or_create_async_output_copy_stream()  # type: ignore[misc]

    def _update_states(self, scheduler_output: SchedulerOutput) -> Any:
        corrections = super()._update_states(scheduler_output)  # type: ignore[misc]
        this: Any = self
        update = scheduler_output.streams
        entering = {} if update is None else update.auxiliary_ids
        streaming = {} if update is None else update.audio_frames
        rows = this.input_batch.req_ids
        staying = set(rows) - entering.keys()
        self._streams.release_except(staying)
        self._decoded &= staying
        admissions = []
        for request_id, auxiliary_ids in entering.items():
            request = this.requests[request_id]
            prompt, output = request.prompt_token_ids, request.output_token_ids
            replayed = self._streams.admit(
                request_id, prompt, output, auxiliary_ids, request.sampling_params
            )
            if self._audio is not None and request_id in streaming:
                steps = steps_of(prompt, output, auxiliary_ids)[: len(prompt) + len(output)]
                slot, sent = self._streams.slot_of(request_id), streaming[request_id]
                admissions.append(Admission(request_id, slot, steps, len(prompt), replayed, sent))
        if self._audio is not None:
            self._audio.change_batch(staying, admissions)
        if entering:
            self._streams.forget_rows()
        self._streams.set_rows(rows)
        return corrections

    def _model_forward(self, *args: Any, **kwargs: Any) -> Any:
        this: Any = self
        count = int(this.query_start_loc.np[this.input_batch.num_reqs])
        self.gather_auxiliary_ids(count)
        return super()._model_forward(*args, **kwargs)  # type: ignore[misc]

    def gather_auxiliary_ids(self, count: int) -> None:
        """Write the auxiliary ids of a step's `count` tokens where the model's forward reads."""
        this: Any = self
        self._streams.gather_inputs(
            this.req_indices.gpu[:count], this.positions[:count], this.model.auxiliary_ids
        )

    def _sample(self, logits: torch.Tensor, spec_decode_metadata: Any) -> SamplerOutput:
        # The model's compute_logits hands its hidden states through: which rows of the head are
        # multiplied depends on each row's phase. Heads are linear, so lanes are merged before them.
        this: Any = self
        this.input_batch.update_async_output_token_ids()
        rows = this.input_batch.num_reqs
        kept = ~this.discard_request_mask.np[:rows]
        batch = self.guided_batch()
        if batch is not None:
            kept[batch.lane_rows_host] = False
        self._kept = kept
        self._step = step = self._sample_streams(
            logits, this.seq_lens[:rows].long(), this.discard_request_mask.gpu[:rows], batch
        )
        return SamplerOutput(step.tokens[:, :1], logprobs_tensors=None)

    def _sample_streams(
        self,
        hidden_states: torch.Tensor,
        position: torch.Tensor,
        discard: torch.Tensor,
        batch: GuidedBatch | None,
    ) -> StepTokens:
        """Sample all streams; the arguments are those of StreamSampler.step."""
        this: Any = self
        lanes = None if batch is None else batch.lanes
        unguided = None if batch is None else self._unguided_streams(batch)
        step = self._stream_sampler.step(
            this.model,
            hidden_states,
            position,
            discard,
            self._host_is_device or not this.use_async_scheduling,
            lanes,
            unguided,
        )
        if self._host_is_device:
            slots = self._streams.row_slots_host[self._kept]
            self._streams.known_state[slots] = step.host[1][1][self._kept]
        return step

    def _unguided_streams(self, batch: GuidedBatch) -> NDArray[np.bool_] | None:
        """Streams at the edges of a guidance interval: each stream's own frame decides."""
        if not batch.has_intervals:
            return None
        assert self._guidance is not None
        frames = np.array([group.frame for group in self._guidance])[:, None] - self._delays
        outside = (frames < batch.first[:, None]) | (frames > batch.last[:, None])
        if not outside.any():
            return None
        unguided = np.zeros((len(batch.lanes.first_host), len(self._delays)), np.bool_)
        unguided[batch.guided_host] = outside
        return unguided

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Upstream's, completed with the step's streams."""
        this: Any = self
        # Streams are sampled by counter; the generators that upstream makes for seeds are unused.
        this.input_batch.generators.clear()
        output = super().sample_tokens(grammar_output)  # type: ignore[misc]
        step, self._step = self._step, None
        if step is None:
            return output
        asynchronous = isinstance(output, AsyncModelRunnerOutput)
        if self._audio is not None:
            self._audio.launch()
        pending = _PendingStreams(
            step,
            this.input_batch.req_ids.copy(),
            self._streams.row_slots_host,
            self._kept,
            self._get_or_create_async_output_copy_stream() if asynchronous else None,
        )
        if asynchronous:
            return _AsyncStreamsOutput(output, self, pending)
        output.streams = self.collect_streams(pending)
        return output

    def collect_streams(self, pending: _PendingStreams) -> StreamOutput:
        """A step's streams on the host, with the audio of the requests that ended in it."""
        tokens, finish, state, segment_start = pending.wait()
        kept = pending.kept
        if not self._host_is_device:
            self._streams.known_state[pending.slots[kept]] = state[kept]
        # Rows that are not kept have not finished: 0 is Finish.NOT_FINISHED.
        if any(finish.tolist()):
            finish = finish * kept
        output = StreamOutput(tokens, finish, state, segment_start)
        ended = [row for row, reason in enumerate(finish.tolist()) if reason]
        streamed: set[int] = set()
        if self._audio is not None:
            # Asked before the step, with whose end the executor may forget them.
            streamed = {row for row in ended if self._audio.holds(pending.request_ids[row])}
            audio = self._audio.step(
                pending.slots, kept, tokens, state, segment_start, output.finish
            )
            output.audio, output.errors = audio.audio, audio.errors
            failed = [pending.request_ids.index(request_id) for request_id in audio.errors]
            output.finish[failed] = Finish.ERROR
        for row in ended:
            if output.finish[row] == Finish.ERROR:
                output.errors.setdefault(
                    pending.request_ids[row],
                    "a stream could not be sampled: its logits are NaN or infinite",
                )
            elif row not in streamed:
                self._decode_whole(output, row, pending)
        return output

    def _decode_whole(self, output: StreamOutput, row: int, pending: _PendingStreams) -> None:
        """Decode the audio of a request that has ended and is not streamed."""
        request_id = pending.request_ids[row]
        request = self.requests.get(request_id)  # type: ignore[attr-defined]
        if request is None or self._decoder is None or request_id in self._decoded:
            return
        # With asynchronous scheduling an ended request is in one more step.
        self._decoded.add(request_id)
        length = self._streams.max_model_len
        tokens = self._streams.history[pending.slots[row], :length].cpu().numpy()
        prompt = request.prompt_token_ids
        limit = stream_limit(self._spec.layout, len(prompt), request.sampling_params, length)
        ended = replay(self._spec.table, prompt, tokens[len(prompt) :, 0], limit, until_done=True)
        if not ended.segments:
            return
        try:
            output.audio[request_id] = self._decoder.decode(tokens, ended.segments)
        except Exception as error:
            logger.exception("The codec failed on request %s.", request_id)
            output.finish[row] = Finish.ERROR
            output.errors[request_id] = f"the codec failed: {error}"

    @torch.inference_mode()
    def _dummy_sampler_run(self, hidden_states: torch.Tensor) -> torch.Tensor:
        this: Any = self
        hidden_states = torch.rand_like(hidden_states)
        # The largest step has every row in both heads.
        logits = [this.model.text_logits(hidden_states), this.model.audio_logits(hidden_states)]
        return logits[0]
