# SPDX-License-Identifier: Apache-2.0
"""The worker's part of conditioning by states in the place of embeddings of a prompt.

A lane's states are computed when it enters the batch and kept until its prompt is computed; the KV
cache has them from then on. In a step in which no row is in its prompt there is nothing to do.
"""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray

from vllm.unison.conditioning.prefix_tokens import PrefixTokens
from vllm.unison.messages.conditioning import PromptStates
from vllm.unison.sampler.upload import upload


@runtime_checkable
class PrefixedModel(Protocol):
    """What is needed of a model whose prompts hold states.

    Attributes:
        prefix_tokens: read by its forward.
    """

    prefix_tokens: PrefixTokens

    def prefix_states(self, inputs: Sequence[PromptStates]) -> list[torch.Tensor]:
        """Per input its states, [num_positions, hidden_size]."""
        ...


class PrefixEmbeddings:
    """Keeps the states of the lanes whose prompt is not computed yet.

    Args:
        model: the model.
        num_slots: of the slot table, its padding slot included.
        device: the model's.
    """

    def __init__(self, model: PrefixedModel, num_slots: int, device: torch.device) -> None:
        self._model = model
        self._device = device
        self._entering: dict[str, PromptStates] = {}
        self._slots: dict[str, int] = {}
        self._firsts: dict[str, int] = {}
        self._states: dict[str, torch.Tensor] = {}
        # All states one after another, and by slot where a lane's begin, which of its positions
        # has the first, and how many they are.
        self._pool = torch.empty(0)
        self._starts = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._first_positions = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._lengths = torch.zeros(num_slots, dtype=torch.int64, device=device)
        self._is_current = True
        self._is_clear = True

    @property
    def num_lanes(self) -> int:
        """Lanes whose states are kept."""
        return len(self._states)

    def release_except(self, staying: AbstractSet[str]) -> None:
        """Let the states of all lanes go that are not among `staying`."""
        for lane_id in [lane_id for lane_id in self._states if lane_id not in staying]:
            self._release(lane_id)

    def admit(self, lane_id: str, slot: int, prefix: PromptStates | None) -> None:
        """Note a lane that enters the batch.

        Args:
            lane_id: the lane's.
            slot: that it holds.
            prefix: what its prompt holds; None for a lane without, or a request of a warm-up.
        """
        if prefix is not None:
            self._entering[lane_id] = prefix
            self._slots[lane_id] = slot
            self._firsts[lane_id] = prefix.first_position

    def compute(self) -> None:
        """Compute the states of the lanes that enter."""
        if not self._entering:
            return
        entering, self._entering = self._entering, {}
        states = self._model.prefix_states(list(entering.values()))
        dtype = self._model.prefix_tokens.states.dtype
        for lane_id, of_lane in zip(entering, states, strict=True):
            self._states[lane_id] = of_lane.to(dtype)
        self._is_current = False

    def prepare_inputs(
        self, row_slots: torch.Tensor, rows: torch.Tensor, positions: torch.Tensor
    ) -> None:
        """Write the states of a step's tokens where the model's forward reads them.

        Args:
            row_slots: [num_rows] int64 slot of each row.
            rows: [num_tokens] int32 or int64 batch row of each token.
            positions: [num_tokens] int64 position of each token.
        """
        tokens = self._model.prefix_tokens
        if not self._states:
            if not self._is_clear:
                tokens.is_prefix.zero_()
                self._is_clear = True
            return
        self._is_clear = False
        self._pack()
        slots, count = row_slots[rows], len(rows)
        places = positions - self._first_positions[slots]
        is_prefix = (places >= 0) & (places < self._lengths[slots])
        indices = (self._starts[slots] + places).masked_fill_(~is_prefix, 0)
        tokens.is_prefix[:count, 0] = is_prefix
        torch.index_select(self._pool, 0, indices, out=tokens.states[:count])

    def note_computed(self, lane_ids: Sequence[str], is_unfinished: NDArray[np.bool_]) -> None:
        """Let the states of lanes go whose prompt is computed with this step.

        Args:
            lane_ids: of the batch's rows.
            is_unfinished: [num_rows] whether a row has not reached its last known token.
        """
        if not self._states:
            return
        for lane_id, unfinished in zip(lane_ids, is_unfinished.tolist(), strict=True):
            if not unfinished and lane_id in self._states:
                self._release(lane_id)

    def _release(self, lane_id: str) -> None:
        del self._states[lane_id], self._slots[lane_id], self._firsts[lane_id]
        self._is_current = False

    def _pack(self) -> None:
        """Put the states one after another, after lanes have come or gone."""
        if self._is_current:
            return
        slots = np.array([self._slots[lane_id] for lane_id in self._states], np.int64)
        lengths = np.array([len(states) for states in self._states.values()], np.int64)
        firsts = np.array([self._firsts[lane_id] for lane_id in self._states], np.int64)
        where = upload(slots, self._device)
        self._pool = torch.cat(list(self._states.values()))
        self._lengths.zero_()
        self._lengths[where] = upload(lengths, self._device)
        self._first_positions[where] = upload(firsts, self._device)
        self._starts[where] = upload(np.cumsum(lengths) - lengths, self._device)
        self._is_current = True
