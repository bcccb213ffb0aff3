# SPDX-License-Identifier: Apache-2.0
"""The worker's side of guidance: merging the lanes of sequence groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from vllm.multistream.worker.lanes import Lanes
from vllm.unison.ops.cfg_merge import cfg_merge
from vllm.v1.outputs import SamplerOutput

if TYPE_CHECKING:
    from vllm.guidance.rows import GuidedRows
    from vllm.v1.core.sched.output import SchedulerOutput


NO_LAST_FRAME = 2**62
"""Stands for the end of a guidance interval that has none."""


class GuidedBatch:
    """The groups of a step's batch, as indices into it.

    Args:
        groups: the groups that sample with guidance.
        row_of: batch row of each row id.
        num_rows: rows of the batch.
        device: where the indices live.

    Attributes:
        lanes: all groups that are sampled, rows of their own included, in the order of their first
            rows.
        guided_host: [num_guided] indices in `lanes` of the groups of `groups`.
        guided_rows, guided_lanes, guided_weights: of the guided groups alone: [num_guided] first
            rows, and [num_guided, most lanes] lanes and weights.
        source: [num_rows] for each row the row whose tokens it gets.
        lane_rows_host: rows of the guidance lanes.
        has_intervals: whether some stretch has unguided frames.
        first, last: [num_guided] first and last guided frame of each guided group.
    """

    def __init__(
        self,
        groups: list[GuidedRows],
        row_of: Mapping[str, int],
        num_rows: int,
        device: torch.device,
    ) -> None:
        guided = [[row_of[row_id] for row_id in group.row_ids] for group in groups]
        most = max(len(rows) for rows in guided)
        leader_of = {lane: rows[0] for rows in guided for lane in rows[1:]}
        rows_of = {rows[0]: rows for rows in guided}
        weights_of = {rows[0]: group.weights for rows, group in zip(guided, groups, strict=True)}
        firsts = [row for row in range(num_rows) if row not in leader_of]
        index = {row: number for number, row in enumerate(firsts)}

        def tensor(values: list[Any], dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)

        def padded(values: list[Any], pad: float) -> list[Any]:
            return values + [pad] * (most - len(values))

        self.lanes = Lanes(
            tensor([padded(rows_of.get(row, [row]), -1) for row in firsts]),
            tensor([padded(weights_of.get(row, [1.0]), 0.0) for row in firsts], torch.float32),
            np.array(firsts, np.int64),
        )
        self.guided_host = np.array([index[rows[0]] for rows in guided], np.int64)
        own = torch.from_numpy(self.guided_host).to(device, non_blocking=True)
        self.guided_lanes, self.guided_weights = self.lanes.rows[own], self.lanes.weights[own]
        self.guided_rows = self.guided_lanes[:, 0]
        self.source = tensor([leader_of.get(row, row) for row in range(num_rows)])
        self.lane_rows_host = list(leader_of)
        self.first = np.array([group.first for group in groups], np.int64)
        self.last = np.array(
            [NO_LAST_FRAME if group.last is None else group.last for group in groups], np.int64
        )
        self.has_intervals = any(group.first or group.last is not None for group in groups)

    def merge(self, values: torch.Tensor) -> torch.Tensor:
        """[num_guided, width] float32 weighted sums over the lanes of [num_rows, width] values."""
        return cfg_merge(values, self.guided_lanes, self.guided_weights, torch.float32)


class GuidedRunner:
    """Mixed in before a V1 runner class; gives it sequence groups.

    For a single-stream model the lanes' logits are merged and upstream's sampler samples; what it
    samples for guidance lanes is replaced by their conditional lane's tokens.
    """

    _guidance: list[GuidedRows] | None = None
    _guided_groups: list[Any] | None = None
    _guided_req_ids: list[str] | None = None
    _guided_batch: GuidedBatch | None = None

    def _update_states(self, scheduler_output: SchedulerOutput) -> Any:
        self._guidance = scheduler_output.guidance
        return super()._update_states(scheduler_output)  # type: ignore[misc]

    def guided_batch(self) -> GuidedBatch | None:
        """The step's groups; None in a step without guidance."""
        if not self._guidance:
            return None
        this: Any = self
        batch = this.input_batch
        # Groups and their rows stay the same from step to step while nobody comes or goes.
        groups = [
            (group.row_ids, group.weights, group.first, group.last) for group in self._guidance
        ]
        if groups != self._guided_groups or batch.req_ids != self._guided_req_ids:
            self._guided_groups, self._guided_req_ids = groups, list(batch.req_ids)
            self._guided_batch = GuidedBatch(
                self._guidance, batch.req_id_to_index, batch.num_reqs, this.device
            )
        return self._guided_batch

    def _sample(self, logits: torch.Tensor | None, spec_decode_metadata: Any) -> SamplerOutput:
        batch = self.guided_batch()
        if batch is None or logits is None:
            return super()._sample(logits, spec_decode_metadata)  # type: ignore[misc]
        merged = batch.merge(logits)
        logits = logits.float()
        logits[batch.guided_rows] = merged
        output = super()._sample(logits, spec_decode_metadata)  # type: ignore[misc]
        output.sampled_token_ids = output.sampled_token_ids[batch.source]
        return output

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Upstream's, which rewinds the generators of rows still in prefill, a thing that
        generators on the CPU cannot do: there such rows do without."""
        this: Any = self
        generators = this.input_batch.generators
        if not generators or this.device.type != "cpu":
            return super().sample_tokens(grammar_output)  # type: ignore[misc]
        unfinished = this.discard_request_mask.np
        held = {row: generators.pop(row) for row in list(generators) if unfinished[row]}
        try:
            return super().sample_tokens(grammar_output)  # type: ignore[misc]
        finally:
            generators.update(held)
