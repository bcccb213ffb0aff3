# SPDX-License-Identifier: Apache-2.0
"""Sampling a batch again and again, while its rows, lanes and phases stay as they are.

What a step of `StreamSampler` finds out each time is then the same each time: which heads are
multiplied for which rows, and all arguments of its operators but the logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from vllm.unison.ops.sample import SampleArguments, sample_streams

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from vllm.multistream.worker.lanes import Lanes
    from vllm.multistream.worker.sampler import HeadSource
    from vllm.multistream.worker.stream_step import StepTokens


@dataclass(frozen=True)
class RepeatedCall:
    """One call of the sampler.

    Attributes:
        columns: of the logits in the head's output; None if it is all of it.
        shape: (num_head_rows, num_streams, width) of the logits.
        arguments: what the sampler is given besides the logits.
    """

    columns: slice | None
    shape: tuple[int, int, int]
    arguments: SampleArguments

    def sample(self, logits: torch.Tensor) -> None:
        """Write the call's tokens, given [num_head_rows, columns] of a head's output."""
        if self.columns is not None:
            logits = logits[:, self.columns]
        sample_streams(logits.view(self.shape), self.arguments)


class RepeatedHead:
    """One head.

    Args:
        name: of the model's method that multiplies it.
        source: where its rows come from.
        calls: of the sampler, for its output.
    """

    def __init__(self, name: str, source: HeadSource, calls: list[RepeatedCall]) -> None:
        self.name = name
        self.calls = calls
        self._source = source
        self._merge = torch.ops.unison.cfg_merge.default
        self._merged: torch.Tensor | None = None

    def read(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[num_head_rows, hidden_size] what the head is multiplied with, as HeadSource.read says.

        It holds until the next step.
        """
        merged, source = self._merged, self._source
        if source.members is None:
            return source.read(hidden_states)
        if merged is None:
            merged = self._merged = source.read(hidden_states)
        else:
            self._merge(hidden_states, source.members, source.weights, merged)
        return merged


class RepeatedStep:
    """A step that can be taken again.

    Args:
        position: [num_rows] int64 position of the emitted tokens; the caller moves it on in place.
        lanes: the groups.
        begin, advance: the step's operators with their arguments.
        heads: those that are multiplied.
        step: what each step writes. Read it before the next one.
        states: [num_rows] state of the phase table of each row.

    Attributes:
        is_valid: whether all rows are still in the states that they were in.
    """

    def __init__(
        self,
        position: torch.Tensor,
        lanes: Lanes | None,
        begin: Callable[[], None],
        advance: Callable[[], None],
        heads: list[RepeatedHead],
        step: StepTokens,
        states: NDArray[np.int64],
    ) -> None:
        self._position, self._lanes = position, lanes
        self._begin, self._advance = begin, advance
        self._heads = heads
        self._step = step
        # Compared as bytes, which costs a tenth of comparing arrays.
        self._states = states.tobytes()
        self._new_states = step.host[1][1]
        self.is_valid = True

    def is_of(self, position: torch.Tensor, lanes: Lanes | None) -> bool:
        """Whether the step can be taken again for these rows."""
        return self.is_valid and self._position is position and self._lanes is lanes

    def take(self, model: Any, hidden_states: torch.Tensor) -> StepTokens:
        """Sample the next token of every stream of every group, as StreamSampler.step does.

        Args:
            model: multiplies the heads.
            hidden_states: [num_rows, hidden_size].
        """
        self._begin()
        for head in self._heads:
            logits = getattr(model, head.name)(head.read(hidden_states))
            for call in head.calls:
                call.sample(logits)
        self._advance()
        self.is_valid = self._new_states.tobytes() == self._states
        return self._step
