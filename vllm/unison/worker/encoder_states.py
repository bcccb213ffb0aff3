# SPDX-License-Identifier: Apache-2.0
"""The worker's part of conditioning by encoder states: encoded when a lane enters the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from vllm.unison.conditioning.cross_attention import StateRows
from vllm.unison.conditioning.states_kv_cache import group_of_states, slots_of_blocks
from vllm.unison.messages.conditioning import EncoderInput
from vllm.unison.sampler.upload import upload


@runtime_checkable
class AttendingModel(Protocol):
    """What is needed of a model whose layers attend to encoder states.

    Attributes:
        state_rows: read by its forward.
    """

    state_rows: StateRows

    def encode_texts(self, texts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Per text its states, [num_ids, hidden_size]."""
        ...

    def write_states(self, states: torch.Tensor, slots: torch.Tensor) -> None:
        """Write all layers' keys and values of some states [n, hidden_size] at `slots` [n]."""
        ...


@dataclass(frozen=True)
class _Entering:
    slot: int
    encoder_input: EncoderInput | None
    block_ids: Sequence[int]


class EncoderStates:
    """Knows how many states each slot's lane has, and writes those of lanes that enter.

    Args:
        model: the model.
        num_slots: of the slot table, its padding slot included.
        device: the model's.
    """

    def __init__(self, model: AttendingModel, num_slots: int, device: torch.device) -> None:
        self._model = model
        self._device = device
        self._lengths = torch.zeros(num_slots, dtype=torch.int32, device=device)
        self._row_slots: torch.Tensor | None = None
        self._rows_without = torch.empty(0, dtype=torch.bool, device=device)
        self._entering: list[_Entering] = []
        self._group: tuple[int, int] | None = None

    def admit(
        self,
        slot: int,
        encoder_input: EncoderInput | None,
        block_ids: Sequence[Sequence[int]],
        kv_cache_config: Any,
    ) -> None:
        """Note a lane that enters the batch.

        Args:
            slot: that it holds.
            encoder_input: what it attends to, if it has any.
            block_ids: its blocks, per KV cache group.
            kv_cache_config: the worker's.
        """
        if self._group is None:
            number = group_of_states(kv_cache_config)
            assert number is not None
            block_size = kv_cache_config.kv_cache_groups[number].kv_cache_spec.block_size
            self._group = number, block_size
        self._entering.append(_Entering(slot, encoder_input, block_ids[self._group[0]]))

    def write(self) -> None:
        """Encode the texts of the lanes that enter, and write their keys and values."""
        entering, self._entering = self._entering, []
        if not entering:
            return
        lengths = np.zeros(len(entering), np.int32)
        texts = []
        for index, lane in enumerate(entering):
            if lane.encoder_input is not None:
                lengths[index] = lane.encoder_input.num_states
                texts.append(lane)
        inputs = [lane.encoder_input.token_ids for lane in texts if lane.encoder_input]
        for lane, states in zip(texts, self._model.encode_texts(inputs), strict=True):
            assert self._group is not None
            slots = slots_of_blocks(lane.block_ids, self._group[1], len(states))
            self._model.write_states(states, upload(slots, self._device))
        where = np.fromiter((lane.slot for lane in entering), np.int64, len(entering))
        self._lengths[upload(where, self._device)] = upload(lengths, self._device)

    def set_rows(self, row_slots: torch.Tensor) -> None:
        """Say which slot each row of the batch holds.

        Args:
            row_slots: [num_rows] int64; the slot table makes another tensor whenever a lane has
                entered or rows have changed, so there is nothing to do for the one of last time.
        """
        if row_slots is self._row_slots:
            return
        self._row_slots = row_slots
        lengths = self._lengths[row_slots]
        self._rows_without = lengths == 0
        torch.clamp(lengths, min=1, out=self._model.state_rows.lengths[: len(row_slots)])

    def prepare_inputs(self, rows: torch.Tensor) -> None:
        """Mark the tokens of lanes without states.

        Args:
            rows: [num_tokens] int32 or int64 batch row of each token.
        """
        without = self._model.state_rows.without_states[: len(rows), 0]
        torch.index_select(self._rows_without, 0, rows, out=without)
