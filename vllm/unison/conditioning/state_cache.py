# SPDX-License-Identifier: Apache-2.0
"""Encoder states by what they were computed from, within a bound on memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

import torch

Key = Hashable
"""What a state was computed from, such as the ids of a text."""


class StateCache:
    """Tensors by key, of which the least recently used leave when there is no room.

    Tensors are shared and not to be written to. What leaves stays alive with those that still use
    it, who have to account for it themselves.

    Args:
        capacity: bytes that the tensors may take together, at least 0. A tensor that is larger is
            never kept.

    Attributes:
        num_bytes: bytes that the tensors take.
    """

    def __init__(self, capacity: int) -> None:
        if capacity < 0:
            raise ValueError(f"capacity must be at least 0 bytes, not {capacity}")
        self.capacity = capacity
        self.num_bytes = 0
        self._states: OrderedDict[Key, torch.Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._states)

    def __contains__(self, key: Key) -> bool:
        """Whether a tensor is kept; no use of it."""
        return key in self._states

    def get(self, key: Key) -> torch.Tensor | None:
        """The tensor of a key, now the most recently used, or None."""
        state = self._states.get(key)
        if state is not None:
            self._states.move_to_end(key)
        return state

    def put(self, key: Key, state: torch.Tensor) -> None:
        """Keep a tensor, in the place of what the key had, if it has room."""
        self._drop(key)
        size = _num_bytes(state)
        if size > self.capacity:
            return
        while self.num_bytes + size > self.capacity:
            self._drop(next(iter(self._states)))
        self._states[key] = state
        self.num_bytes += size

    def _drop(self, key: Key) -> None:
        state = self._states.pop(key, None)
        if state is not None:
            self.num_bytes -= _num_bytes(state)


def _num_bytes(state: torch.Tensor) -> int:
    """Bytes that a tensor keeps alive: a part of a larger one keeps the whole."""
    return int(state.untyped_storage().nbytes())
