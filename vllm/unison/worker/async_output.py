# SPDX-License-Identifier: Apache-2.0
"""Outputs of a step that are read after later steps have been launched."""

from __future__ import annotations

from typing import Any

import torch

from vllm.unison.worker.pending_step import PendingStep
from vllm.unison.worker.stream_worker import StreamWorker
from vllm.v1.outputs import AsyncModelRunnerOutput, ModelRunnerOutput


class AsyncStreamsOutput(AsyncModelRunnerOutput):
    """A model runner's asynchronous output, completed with the step's streams.

    Args:
        inner: the runner's AsyncModelRunnerOutput.
        worker: that launched the step.
        pending: what the step emitted.
    """

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
        """What the runner's output says of KV connectors (upstream asks from 0.33 on)."""
        return self._inner.get_kv_connector_output()


class NoEvent:
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
        self.async_copy_ready_event = NoEvent()

    def get_output(self) -> ModelRunnerOutput:
        """The output with the step's tokens filled in."""
        token_ids = self.sampled_token_ids_cpu.tolist()
        for row in self._invalid:
            token_ids[row].clear()
        self._output.sampled_token_ids = token_ids
        return self._output

    def get_kv_connector_output(self) -> Any:
        """What the step's output says of KV connectors (upstream asks from 0.33 on)."""
        return self._output.kv_connector_output
