# SPDX-License-Identifier: Apache-2.0
"""What a step of the stream sampler works out, kept for the steps that follow.

In most steps nobody comes, goes or changes phase. Which heads are multiplied for which batch rows,
and all arguments of the sampler's operators but the logits and the position, are then those of the
step before. Only for devices whose memory the host reads directly: elsewhere the host does not know
the rows' states in time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from vllm.unison.ops.cfg_merge import cfg_merge
from vllm.unison.ops.sample import SampleArguments, sample_streams
from vllm.unison.sampler.upload import upload

if TYPE_CHECKING:
    from vllm.unison.sampler.batch_groups import BatchGroups
    from vllm.unison.sampler.phase_machine import StepTokens


@dataclass(frozen=True)
class PlannedCall:
    """One call of the sampling operator.

    Attributes:
        columns: of the logits in the head's output; None if it is all of it.
        shape: (num_head_rows, num_streams, width) of the logits.
        arguments: what it is given besides the logits.
    """

    columns: slice | None
    shape: tuple[int, int, int]
    arguments: SampleArguments

    def run(self, logits: torch.Tensor) -> None:
        """Write the call's tokens, given [num_head_rows, columns] of a head's output."""
        if self.columns is not None:
            logits = logits[:, self.columns]
        sample_streams(logits.view(self.shape), self.arguments)


@dataclass(frozen=True)
class HeadGather:
    """Where the rows come from that a head is multiplied for.

    Attributes:
        index: [num_head_rows] batch rows; None if it is all of them, or with `members`.
        members, weights: [num_head_rows, max_lanes] lanes that are merged, and their weights; None
            if every batch row is a group of its own.
    """

    index: torch.Tensor | None
    members: torch.Tensor | None
    weights: torch.Tensor | None

    @classmethod
    def of(
        cls,
        chosen: NDArray[np.int64],
        groups: BatchGroups | None,
        num_rows: int,
        device: torch.device,
    ) -> HeadGather:
        """The gather of the groups numbered `chosen`, of a batch of `num_rows` rows."""
        index = None
        if len(chosen) < (num_rows if groups is None else len(groups.first_rows)):
            index = upload(chosen, device)
        if groups is None:
            return cls(index, None, None)
        if index is None:
            return cls(None, groups.members, groups.weights)
        return cls(None, groups.members[index], groups.weights[index])

    @property
    def rows(self) -> torch.Tensor | None:
        """[num_head_rows, max_lanes] rows that get a group's tokens; None if group g is row g."""
        return self.members if self.index is None else self.index[:, None]

    def read(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """[num_head_rows, hidden_size] of a batch's hidden states.

        Heads are linear and weights sum to 1, so hidden states are merged before a head instead of
        logits after it, which multiplies it once per group instead of once per lane.
        """
        if self.members is not None and self.weights is not None:
            return cfg_merge(hidden_states, self.members, self.weights)
        return hidden_states if self.index is None else hidden_states[self.index]


class HeadGatherCache:
    """A head's newest gather, kept while the rows that it is multiplied for stay as they are.

    Args:
        device: where the indices live.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._key: tuple[bytes, int] | None = None
        self._groups: BatchGroups | None = None
        self._gather: HeadGather | None = None

    def get(
        self, chosen: NDArray[np.int64], groups: BatchGroups | None, num_rows: int
    ) -> HeadGather:
        """HeadGather.of these arguments; groups are compared by identity."""
        key = (chosen.tobytes(), num_rows)
        if self._gather is None or key != self._key or groups is not self._groups:
            self._key, self._groups = key, groups
            self._gather = HeadGather.of(chosen, groups, num_rows, self._device)
        return self._gather


@dataclass(frozen=True)
class PlannedHead:
    """One head.

    Attributes:
        logits_of: multiplies it: [num_head_rows, hidden_size] to [num_head_rows, columns].
        gather: where its rows come from.
        calls: of the sampling operator, for its output.
        redraws: its calls for streams that are drawn again, after `find_repeats`; empty if no
            request has a repeat window.
        find_repeats: says which streams are.
    """

    logits_of: Callable[[torch.Tensor], torch.Tensor]
    gather: HeadGather
    calls: list[PlannedCall]
    redraws: list[PlannedCall]
    find_repeats: Callable[[], None]


class SamplingPlan:
    """A step that can be run again.

    Args:
        row_slots: [num_rows] slot of each batch row, on the host.
        groups: the batch's groups; None if every batch row is one of its own.
        states: [num_groups] state of the phase table of each group.
        position: [num_rows] buffer for the position of the emitted tokens.
        constrain, commit: the phase machine's operators, with their arguments.
        heads: those that are multiplied.
        step: what each run writes. Read it before the next one.
    """

    def __init__(
        self,
        row_slots: NDArray[np.int64],
        groups: BatchGroups | None,
        states: NDArray[np.int64],
        position: torch.Tensor,
        constrain: Callable[[], None],
        commit: Callable[[], None],
        heads: list[PlannedHead],
        step: StepTokens,
    ) -> None:
        self._row_slots = row_slots
        self._groups = groups
        # Compared as bytes, which costs a tenth of comparing arrays.
        self._states = states.tobytes()
        self._position = position
        self._constrain, self._commit = constrain, commit
        self._heads = heads
        self._step = step

    def matches(
        self,
        row_slots: NDArray[np.int64],
        groups: BatchGroups | None,
        states: NDArray[np.int64],
    ) -> bool:
        """Whether a step with these rows, groups and states is the planned one.

        Rows and groups are compared by identity: they are made anew whenever they change.
        """
        return (
            row_slots is self._row_slots
            and groups is self._groups
            and states.tobytes() == self._states
        )

    def run(self, hidden_states: torch.Tensor, position: torch.Tensor) -> StepTokens:
        """Sample the next token of every stream of every group, as StreamSampler.step does.

        Args:
            hidden_states: [num_rows, hidden_size].
            position: [num_rows] integer position of the emitted tokens.
        """
        self._position.copy_(position)
        self._constrain()
        for head in self._heads:
            logits = head.logits_of(head.gather.read(hidden_states))
            for call in head.calls:
                call.run(logits)
            if head.redraws:
                head.find_repeats()
            for call in head.redraws:
                call.run(logits)
        self._commit()
        return self._step
