# SPDX-License-Identifier: Apache-2.0
"""What a step emitted, on its way to the host."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vllm.unison.sampler.phase_machine import StepTokens


class PendingStep:
    """A step's tokens and outcomes; copies them from a CUDA device, reads them in place on the CPU.

    Args:
        step: what the step emitted.
        request_ids: of its batch rows.
        slots: [num_rows] their slots.
        kept: [num_rows] rows that sampled and are no guidance lanes.
        copy_stream: the CUDA stream that copies; None to wait for the copy at once.
    """

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
        # Keeps the device tensors alive until they are copied.
        self._step = step
        self._ready: torch.cuda.Event | None = None
        self._host: tuple[torch.Tensor, torch.Tensor] | None = None
        if step.tokens.device.type == "cpu":
            pass
        elif copy_stream is None:
            self._host = (step.tokens.cpu(), step.outcome.cpu())
        else:
            self._ready = torch.cuda.Event(blocking=True)
            launched = torch.cuda.current_stream()
            with torch.cuda.stream(copy_stream):
                copy_stream.wait_stream(launched)
                self._host = (
                    step.tokens.to("cpu", non_blocking=True),
                    step.outcome.to("cpu", non_blocking=True),
                )
                self._ready.record()

    def wait(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Tokens [num_rows, num_streams]; finish, state and segment start [num_rows] each."""
        if self._ready is not None:
            self._ready.synchronize()
        if self._host is None:
            tokens, outcome = self._step.host
        else:
            tokens, outcome = self._host[0].numpy(), self._host[1].numpy()
        finish, state, segment_start = outcome
        return tokens, finish, state, segment_start
