# SPDX-License-Identifier: Apache-2.0
"""How upstream's V1 model runner drives multi-stream generation and guidance.

The runner's class stays upstream's. It holds an adapter, which it calls at three points of a step
(the batch is made up; the forward is next; the output is made), and whose sampler takes the place
of its own.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from vllm.unison.model.spec import SpeechSpec, multistream_spec
from vllm.unison.worker.adapters import V1Adapter
from vllm.unison.worker.async_output import AsyncStreamsOutput, HostAsyncOutput
from vllm.unison.worker.stream_worker import StreamWorker, make_stream_worker
from vllm.unison.worker.text_guidance import TextGuidance
from vllm.unison.worker.wrapped_sampler import WrappedSampler
from vllm.v1.outputs import AsyncModelRunnerOutput, SamplerOutput


class V1Runner(Protocol):
    """What the adapters use of upstream's runner; types are upstream's."""

    device: torch.device
    model: Any
    vllm_config: Any
    kv_cache_config: Any
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
        if runner.device.type == "cpu":
            # Upstream's classes for asynchronous output wait for CUDA events.
            runner.async_output_class = HostAsyncOutput
            runner.async_output_copy_stream = _NO_COPY_STREAM
        self.worker: StreamWorker = make_stream_worker(
            spec,
            runner.model,
            runner.vllm_config,
            runner.max_num_reqs,
            runner.max_model_len,
            runner.device,
            runner.use_async_scheduling,
        )
        runner.sampler = WrappedSampler(runner.sampler, self._sample)

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
                request.block_ids,
                runner.kv_cache_config,
            )
        worker.set_batch(request_ids)

    def prepare_inputs(self) -> None:
        """Write the auxiliary ids of the step's tokens."""
        runner = self._runner
        count = int(runner.query_start_loc.np[runner.input_batch.num_reqs])
        self.worker.prepare_inputs(runner.req_indices.gpu[:count], runner.positions[:count])

    def _sample(self, _sampler: Any, *, logits: torch.Tensor, **_unused: Any) -> SamplerOutput:
        """Sample all streams of the rows.

        The model's compute_logits hands its hidden states through as `logits`, since which rows of
        the head are multiplied depends on each row's phase.
        """
        hidden_states, runner = logits, self._runner
        batch = runner.input_batch
        # Streams are sampled by counter; the generators that upstream makes for seeds are unused.
        batch.generators.clear()
        rows = batch.num_reqs
        if rows == 0:
            # The dummy run of memory profiling, in which there is no request.
            self.worker.run_heads(hidden_states)
            tokens = torch.zeros((len(hidden_states), 1), dtype=torch.int32, device=runner.device)
        else:
            tokens = self.worker.sample(
                hidden_states,
                runner.seq_lens[:rows],
                runner.discard_request_mask.gpu[:rows],
                runner.discard_request_mask.np[:rows],
            )
        return SamplerOutput(tokens, logprobs_tensors=None)

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
            return AsyncStreamsOutput(output, self.worker, pending)
        output.streams = self.worker.collect(pending)
        return output


class V1TextAdapter:
    """Guides a single-stream model.

    Args:
        runner: the model runner, whose sampler is wrapped.
    """

    def __init__(self, runner: V1Runner) -> None:
        self._runner = runner
        self._guidance = TextGuidance(runner.device)
        self._generators_aside: dict[int, torch.Generator] = {}
        runner.sampler = WrappedSampler(runner.sampler, self._sample)

    def begin_step(self, scheduler_output: Any) -> None:
        """Note which groups sample with guidance in this step."""
        self._guidance.begin_step(scheduler_output.guidance)

    def prepare_inputs(self) -> None:
        """Lanes are ordinary rows of the batch."""

    def _sample(self, sampler: Any, *, logits: torch.Tensor, **arguments: Any) -> Any:
        """Sample [num_rows, vocabulary_size] logits with upstream's sampler."""
        self._put_generators_aside()
        return self._guidance.sample(
            logits,
            self._runner.input_batch.req_ids,
            lambda merged: sampler(logits=merged, **arguments),
        )

    def _put_generators_aside(self) -> None:
        """Upstream rewinds the generators of rows that are still in prefill, which generators on
        the CPU cannot do: such rows sample without one, since their tokens are thrown away."""
        runner = self._runner
        generators = runner.input_batch.generators
        if generators and runner.device.type == "cpu":
            is_unfinished = runner.discard_request_mask.np
            self._generators_aside = {
                row: generators.pop(row) for row in list(generators) if is_unfinished[row]
            }

    def end_step(self, output: Any) -> Any:
        """The step's output, unchanged."""
        self._guidance.begin_step(None)
        if self._generators_aside:
            self._runner.input_batch.generators.update(self._generators_aside)
            self._generators_aside = {}
        return output


_NO_COPY_STREAM = object()
"""Stands for the CUDA stream that copies outputs, where there is nothing to copy."""
