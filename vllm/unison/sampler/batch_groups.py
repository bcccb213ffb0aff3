# SPDX-License-Identifier: Apache-2.0
"""The sequence groups of a step's batch, as indices of batch rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from vllm.unison.ops.cfg_merge import cfg_merge
from vllm.unison.sampler.upload import upload

if TYPE_CHECKING:
    from vllm.unison.messages.guidance import GuidedGroup

NO_LAST_FRAME = 2**62
"""Stands for the end of a guidance interval that has none."""


@dataclass(frozen=True)
class BatchGroups:
    """What is sampled once in a step, and for which batch rows.

    Attributes:
        members: [num_groups, max_lanes] int64 batch rows of each group's active lanes, the
            conditional lane first; -1 where a group has fewer. Every batch row is in one group.
        weights: [num_groups, max_lanes] float32 guidance weights; 1 for the only lane of a group.
        first_rows: [num_groups] the first column of `members`, on the host.
    """

    members: torch.Tensor
    weights: torch.Tensor
    first_rows: NDArray[np.int64]


class GuidedBatch:
    """A step's batch in which some groups sample with guidance.

    Args:
        guided: the groups that sample with guidance.
        row_of: batch row by request or lane id.
        num_rows: rows of the batch.
        device: where the indices live.

    Attributes:
        groups: all groups of the batch, in the order of their first rows.
        guided_index: [num_guided] indices in `groups` of the guided groups, on the host.
        guided_members, guided_weights: those groups' rows of `groups.members` and `.weights`.
        token_rows: [num_rows] int64 for each row the row whose tokens it gets.
        guidance_rows: batch rows of the guidance lanes.
        has_intervals: whether a group has a guidance interval.
        first_frames, last_frames: [num_guided] guided frames of each guided group.
    """

    def __init__(
        self,
        guided: Sequence[GuidedGroup],
        row_of: Mapping[str, int],
        num_rows: int,
        device: torch.device,
    ) -> None:
        members = [[row_of[lane_id] for lane_id in group.lane_ids] for group in guided]
        max_lanes = max(len(rows) for rows in members)
        first_of = {row: rows[0] for rows in members for row in rows[1:]}
        members_of = {rows[0]: rows for rows in members}
        weights_of = {rows[0]: group.weights for rows, group in zip(members, guided, strict=True)}
        first_rows = [row for row in range(num_rows) if row not in first_of]
        index_of = {row: index for index, row in enumerate(first_rows)}

        all_members = np.full((len(first_rows), max_lanes), -1, np.int64)
        all_weights = np.zeros((len(first_rows), max_lanes), np.float32)
        for index, row in enumerate(first_rows):
            rows, weights = members_of.get(row, [row]), weights_of.get(row, [1.0])
            all_members[index, : len(rows)] = rows
            all_weights[index, : len(rows)] = weights

        def on_device(values: NDArray[np.generic]) -> torch.Tensor:
            return upload(values, device)

        self.groups = BatchGroups(
            on_device(all_members), on_device(all_weights), np.array(first_rows, np.int64)
        )
        self.guided_index = np.array([index_of[rows[0]] for rows in members], np.int64)
        self.guided_members = on_device(all_members[self.guided_index])
        self.guided_weights = on_device(all_weights[self.guided_index])
        self.token_rows = on_device(
            np.array([first_of.get(row, row) for row in range(num_rows)], np.int64)
        )
        self.guidance_rows = list(first_of)
        self.first_frames = np.array([group.first for group in guided], np.int64)
        self.last_frames = np.array(
            [NO_LAST_FRAME if group.last is None else group.last for group in guided], np.int64
        )
        self.has_intervals = any(group.first or group.last is not None for group in guided)

    def merge(self, values: torch.Tensor) -> torch.Tensor:
        """[num_guided, width] float32 weighted sums over the lanes of [num_rows, width] values."""
        return cfg_merge(values, self.guided_members, self.guided_weights, torch.float32)

    def unguided_streams(
        self, frames: Sequence[int], delays: NDArray[np.int64]
    ) -> NDArray[np.bool_] | None:
        """[num_groups, num_streams] streams that only the conditional lane decides.

        At the edges of an interval each stream's own frame decides: stream k of a step whose
        stream 0 has frame f carries frame f - delays[k].

        Args:
            frames: of this step, per guided group.
            delays: [num_streams] of the delay pattern.

        Returns:
            None if all streams of all guided groups are guided.
        """
        if not self.has_intervals:
            return None
        carried = np.array(frames)[:, None] - delays
        outside = (carried < self.first_frames[:, None]) | (carried > self.last_frames[:, None])
        if not outside.any():
            return None
        unguided = np.zeros((len(self.groups.first_rows), len(delays)), np.bool_)
        unguided[self.guided_index] = outside
        return unguided


class GuidedBatchCache:
    """The newest step's guided batch, kept while its groups and rows stay as they are.

    Args:
        device: where the indices live.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._guided: Sequence[GuidedGroup] = ()
        self._request_ids: list[str] = []
        self._batch: GuidedBatch | None = None

    def get(
        self,
        guided: Sequence[GuidedGroup],
        request_ids: Sequence[str],
    ) -> GuidedBatch:
        """The guided batch of a step.

        Args:
            guided: the groups that sample with guidance, at least one.
            request_ids: of the batch rows.
        """
        if self._batch is None or guided != self._guided or request_ids != self._request_ids:
            self._guided, self._request_ids = guided, list(request_ids)
            row_of = {request_id: row for row, request_id in enumerate(request_ids)}
            self._batch = GuidedBatch(guided, row_of, len(request_ids), self._device)
        return self._batch
