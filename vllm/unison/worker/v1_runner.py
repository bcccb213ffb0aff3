# SPDX-License-Identifier: Apache-2.0
"""How upstream's V1 model runner drives multi-stream generation and guidance.

The runner's class stays upstream's. It holds an adapter, which it calls at three points of a step
(the batch is made up; the forward is next; the output is made), and whose sampler takes the place
of its own.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from vllm.distributed import get_tensor_model_parallel_rank
from vllm.unison.audio_decoder.chunk_schedule import ChunkSchedule
from vllm.unison.model.spec import SpeechSpec, multistream_spec
from vllm.unison.sampler.slot_table import num_slots
from vllm.unison.worker.pending_step import PendingStep
from vllm.unison.worker.step_audio import StepAudio
from vllm.unison.worker.stream_worker import StreamWorker
from vllm.unison.worker.text_guidance import V1TextAdapter
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput, SamplerOutput


class V1Runner(Protocol):
    """What the adapters use of upstream's runner; types are upstream's."""

    device: torch.device
    model: Any
    vllm_config: Any
    sampler: Any
    input_batch: Any
    requests: dict[str, Any]
    query_start_loc: Any
    req_indices: Any
    positions: torch.Tensor
    seq_lens: torch.Tensor
    discard_request_mask: Any
    max_num_reqs: int
    max_model_len: int
    use_async_scheduling: bool
    async_output_class: type
    async_output_copy_stream: Any


class V1Adapter(Protocol):
    """What upstream's V1 runner calls in each step."""

    def begin_step(self, scheduler_output: Any) -> None:
        """The runner's batch holds the rows of `scheduler_output`."""
        ...

    def prepare_inputs(self) -> None:
        """The positions of the step's tokens are known, and the model's forward is next."""
        ...

    def end_step(self, output: Any) -> Any:
        """The runner's output, completed."""
        ...


class NoAdapter:
    """An adapter that does nothing, for runners that no worker has loaded a model into."""

    def begin_step(self, scheduler_output: Any) -> None:
        """Nothing to note."""

    def prepare_inputs(self) -> None:
        """Nothing to prepare."""

    def end_step(self, output: Any) -> Any:
        """The output as it is."""
        return output


def make_v1_adapter(runner: V1Runner) -> V1Adapter:
    """The adapter of a V1 runner whose model is loaded."""
    spec = multistream_spec(runner.vllm_config.model_config)
    return V1TextAdapter(runner) if spec is None else V1StreamAdapter(runner, spec)


class V1StreamAdapter:
    """Runs a multi-stream model: calls a StreamWorker with what the runner knows.

    Args:
        runner: the model runner.
        spec: its model's specification.

    Attributes:
        worker: the stream worker.
    """

    def __init__(self, runner: V1Runner, spec: SpeechSpec) -> None:
        self._runner = runner
        self._is_async = runner.use_async_scheduling
        if runner.device.type == "cpu":
            # Upstream's classes for asynchronous output wait for CUDA events.
            runner.async_output_class = HostAsyncOutput
            runner.async_output_copy_stream = _NO_COPY_STREAM
        runner.model.prepare_streams()
        audio = None
        # Only the first rank's output reaches the scheduler.
        if spec.has_codec and get_tensor_model_parallel_rank() == 0:
            policy = ChunkSchedule.from_config(runner.vllm_config.additional_config)
            audio = StepAudio(spec, runner.device, policy, num_slots(runner.max_num_reqs))
        self.worker = StreamWorker(
            spec,
            runner.model,
            runner.max_num_reqs,
            runner.max_model_len,
            runner.device,
            self._is_async,
            audio,
        )
        runner.sampler = _StreamSampling(runner.sampler, self)

    def begin_step(self, scheduler_output: Any) -> None:
        """Admit the requests that enter the batch."""
        runner, worker, update = self._runner, self.worker, scheduler_output.streams
        request_ids = runner.input_batch.req_ids
        entering = {} if update is None else update.auxiliary_ids
        worker.begin_step(update, scheduler_output.guidance, set(request_ids) - entering.keys())
        for request_id in entering:
            request = runner.requests[request_id]
            worker.admit(
                request_id,
                request.prompt_token_ids,
                request.output_token_ids,
                request.sampling_params,
            )
        worker.set_batch(request_ids)

    def prepare_inputs(self) -> None:
        """Write the auxiliary ids of the step's tokens."""
        runner = self._runner
        count = int(runner.query_start_loc.np[runner.input_batch.num_reqs])
        self.worker.prepare_inputs(runner.req_indices.gpu[:count], runner.positions[:count])

    def sample(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[num_rows, 1] tokens of stream 0.

        The model's compute_logits hands its hidden states through, since which rows of the head
        are multiplied depends on each row's phase.
        """
        runner = self._runner
        batch = runner.input_batch
        # Streams are sampled by counter; the generators that upstream makes for seeds are unused.
        batch.generators.clear()
        rows = batch.num_reqs
        if rows == 0:
            # The dummy run of memory profiling, in which there is no request.
            self.worker.run_heads(hidden_states)
            return torch.zeros((len(hidden_states), 1), dtype=torch.int32, device=runner.device)
        return self.worker.sample(
            hidden_states,
            runner.seq_lens[:rows],
            runner.discard_request_mask.gpu[:rows],
            runner.discard_request_mask.np[:rows],
            batch.req_id_to_index,
        )

    def end_step(self, output: Any) -> Any:
        """The runner's output with the step's streams."""
        is_async = isinstance(output, AsyncModelRunnerOutput)
        copy_stream = self._runner.async_output_copy_stream if is_async else None
        if copy_stream is _NO_COPY_STREAM:
            copy_stream = None
        pending = self.worker.end_step(copy_stream)
        if pending is None:
            return output
        if is_async:
            return _AsyncStreamsOutput(output, self.worker, pending)
        output.streams = self.worker.collect(pending)
        return output


class _StreamSampling:
    """Stands for upstream's sampler, which keeps answering all other questions.

    Args:
        sampler: upstream's.
        adapter: samples.
    """

    def __init__(self, sampler: Any, adapter: V1StreamAdapter) -> None:
        self._sampler = sampler
        self._adapter = adapter

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    def __call__(self, *, logits: torch.Tensor, **_unused: Any) -> SamplerOutput:
        return SamplerOutput(self._adapter.sample(logits), logprobs_tensors=None)


_NO_COPY_STREAM = object()
"""Stands for the CUDA stream that copies outputs, where there is nothing to copy."""


class _NoEvent:
    """Stands for the event of a copy that never needs waiting for."""

    def record(self) -> None:
        """Nothing is waited for."""

    def synchronize(self) -> None:
        """Nothing is waited for."""


class HostAsyncOutput(AsyncModelRunnerOutput):
    """Asynchronous output on a device whose tensors the host reads directly (the CPU).

    Takes the arguments of the V1 runner's own class for CUDA devices.
    """

    def __init__(
        self,
        model_runner_output: ModelRunnerOutput,
        sampled_token_ids: torch.Tensor,
        invalid_req_indices: list[int],
        **_unused: Any,
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

    def get_kv_connector_output(self) -> Any:
        """What upstream's executors ask for by itself from 0.33 on."""
        return self._output.kv_connector_output


class _AsyncStreamsOutput(AsyncModelRunnerOutput):
    """The V1 runner's asynchronous output, completed with the step's streams."""

    def __init__(self, inner: Any, worker: StreamWorker, pending: PendingStep) -> None:
        self._inner = inner
        self._worker = worker
        self._pending = pending

    def get_output(self) -> ModelRunnerOutput:
        """The completed output; waits for the copies."""
        output: ModelRunnerOutput = self._inner.get_output()
        output.streams = self._worker.collect(self._pending)
        return output

    def get_kv_connector_output(self) -> Any:
        """That of the runner's own output; upstream's executors ask for it from 0.33 on."""
        return self._inner.get_kv_connector_output()
