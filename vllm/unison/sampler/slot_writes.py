# SPDX-License-Identifier: Apache-2.0
"""What the requests that enter a step's batch write into the tensors of all slots.

The writes of a step's requests are collected on the host and made together, so that the number of
copies and launches does not depend on the number of requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from vllm.unison.model.phases import Progress
from vllm.unison.sampler.upload import upload


@dataclass
class SlotSettings:
    """Sampling settings of all slots; column 0 is for text phases, column 1 + k for stream k.

    Attributes:
        temperature, top_k, top_p: [num_slots, 1 + num_streams].
        seed: [num_slots] int64.
        limit: [num_slots] position at which stream 0 may emit no more.
        earliest_end: [num_slots] position before which the request may not end by itself.
        num_prompt: [num_slots] length of the prompt.
        repeat_window, max_repeats: [num_slots] a code that a stream has emitted so often in so many
            steps is drawn again; a window of 0: none is.
    """

    temperature: torch.Tensor
    top_k: torch.Tensor
    top_p: torch.Tensor
    seed: torch.Tensor
    limit: torch.Tensor
    earliest_end: torch.Tensor
    num_prompt: torch.Tensor
    repeat_window: torch.Tensor
    max_repeats: torch.Tensor


@dataclass(frozen=True)
class SlotWrite:
    """What a request that enters writes into its slot; see SlotTable for the tensors.

    Attributes:
        slot: that it holds.
        streams: [n, num_streams] int32 ids of all streams from position 0 on.
        suffix_end, state, segment_start, flush_end: where the request stands.
        temperature, top_k, top_p: [1 + num_streams] each.
        seed, limit, earliest_end, num_prompt, repeat_window, max_repeats: its other settings.
    """

    slot: int
    streams: NDArray[np.int32]
    suffix_end: int
    state: int
    segment_start: int
    flush_end: int
    temperature: Sequence[float]
    top_k: Sequence[int]
    top_p: Sequence[float]
    seed: int
    limit: int
    earliest_end: int
    num_prompt: int
    repeat_window: int
    max_repeats: int


def write_slots(
    writes: Sequence[SlotWrite],
    history: torch.Tensor,
    suffix_end: torch.Tensor,
    progress: Progress,
    settings: SlotSettings,
) -> None:
    """Make the writes of the requests that enter a batch.

    Args:
        writes: at least one, each of another slot.
        history: [num_slots, num_positions, num_streams] int32, contiguous.
        suffix_end: [num_slots] int64.
        progress, settings: of all slots.
    """
    device = history.device
    integers = np.array(
        [
            (
                write.slot,
                write.suffix_end,
                write.state,
                write.segment_start,
                write.flush_end,
                write.seed,
                write.limit,
                write.earliest_end,
                write.num_prompt,
                write.repeat_window,
                write.max_repeats,
            )
            for write in writes
        ],
        np.int64,
    )
    slots, *columns = upload(np.ascontiguousarray(integers.T), device)
    targets = (
        suffix_end,
        progress.state,
        progress.segment_start,
        progress.flush_end,
        settings.seed,
        settings.limit,
        settings.earliest_end,
        settings.num_prompt,
        settings.repeat_window,
        settings.max_repeats,
    )
    for target, column in zip(targets, columns, strict=True):
        target.index_copy_(0, slots, column)
    shares = np.array([(write.temperature, write.top_p) for write in writes], np.float32)
    temperature, top_p = upload(np.ascontiguousarray(shares.swapaxes(0, 1)), device)
    settings.temperature.index_copy_(0, slots, temperature)
    settings.top_p.index_copy_(0, slots, top_p)
    top_k = np.array([write.top_k for write in writes], np.int32)
    settings.top_k.index_copy_(0, slots, upload(top_k, device))
    num_positions = history.shape[1]
    places = [write.slot * num_positions + np.arange(len(write.streams)) for write in writes]
    streams = np.concatenate([write.streams for write in writes])
    history.view(-1, history.shape[2]).index_copy_(
        0, upload(np.concatenate(places), device), upload(streams, device)
    )
