# SPDX-License-Identifier: Apache-2.0
"""How upstream's V2 model runner drives multi-stream generation and guidance.

The runner's class stays upstream's. It holds an adapter, which it calls when a step begins and with
the step's output; a multi-stream model has its `StreamModelState` in the runner besides.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch

from vllm.unison.worker.adapters import RunnerAdapter
from vllm.unison.worker.async_output import AsyncStreamsOutput
from vllm.unison.worker.stream_worker import StreamWorker
from vllm.unison.worker.text_guidance import TextGuidance
from vllm.unison.worker.v2_model_state import StreamModelState
from vllm.unison.worker.wrapped_sampler import WrappedSampler
from vllm.v1.outputs import AsyncModelRunnerOutput


class V2Runner(Protocol):
    """What the adapters use of upstream's runner; types are upstream's."""

    device: torch.device
    sampler: Any
    model_state: Any
    kv_cache_config: Any
    output_copy_stream: Any


def make_v2_adapter(runner: V2Runner) -> RunnerAdapter:
    """The adapter of a V2 runner whose model is loaded."""
    if isinstance(runner.model_state, StreamModelState):
        return V2StreamAdapter(runner, runner.model_state)
    return V2TextAdapter(runner)


class V2StreamAdapter:
    """Runs a multi-stream model.

    Args:
        runner: the model runner.
        state: what it keeps of its model.

    Attributes:
        worker: the stream worker.
    """

    def __init__(self, runner: V2Runner, state: StreamModelState) -> None:
        self._runner, self._state = runner, state
        self._copy_stream = None if runner.device.type == "cpu" else runner.output_copy_stream
        self.worker: StreamWorker = state.worker

    def begin_step(self, scheduler_output: Any) -> None:
        """Hand on what the scheduler says of streams and guidance."""
        self._state.begin_step(scheduler_output, self._runner.kv_cache_config)

    def end_step(self, output: AsyncModelRunnerOutput) -> AsyncModelRunnerOutput:
        """The runner's output with the step's streams."""
        self._state.end_step()
        pending = self.worker.end_step(self._copy_stream)
        return output if pending is None else AsyncStreamsOutput(output, self.worker, pending)


class V2TextAdapter:
    """Guides a single-stream model.

    Args:
        runner: the model runner, whose sampler is wrapped.
    """

    def __init__(self, runner: V2Runner) -> None:
        self._guidance = TextGuidance(runner.device)
        # Runners of pooling models, and of all but the last pipeline stage, have no sampler.
        if runner.sampler is not None:
            runner.sampler = WrappedSampler(runner.sampler, self._sample)

    def begin_step(self, scheduler_output: Any) -> None:
        """Note which groups sample with guidance in this step."""
        self._guidance.begin_step(scheduler_output.guidance)

    def _sample(self, sampler: Any, logits: torch.Tensor, input_batch: Any) -> Any:
        """Sample [num_rows, vocabulary_size] logits with upstream's sampler."""
        return self._guidance.sample(
            logits, input_batch.req_ids, lambda merged: sampler(merged, input_batch)
        )

    def end_step(self, output: Any) -> Any:
        """The step's output, unchanged."""
        self._guidance.begin_step(None)
        return output
