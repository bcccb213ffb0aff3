# SPDX-License-Identifier: Apache-2.0
"""The worker's side of guidance: merging the lanes of sequence groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from vllm.v1.outputs import SamplerOutput

if TYPE_CHECKING:
    from vllm.guidance.rows import GuidedRows
    from vllm.v1.core.sched.output import SchedulerOutput


class GuidedBatch:
    """The sampling groups of a step, as indices into its batch.

    Args:
        groups: the groups that sample with guidance.
        row_of: batch row of each row id.
        num_rows: rows of the batch.
        device: where the indices live.

    Attributes:
        sampling_rows: [num_sampling] rows that are sampled: all but the guidance lanes.
        source: [num_rows] for each row the index in sampling_rows of the row whose tokens it gets.
        guided: [num_groups] indices in sampling_rows of the conditional lanes.
        lane_rows: [num_guidance_lanes] rows of the guidance lanes.
    """

    def __init__(
        self,
        groups: list[GuidedRows],
        row_of: Mapping[str, int],
        num_rows: int,
        device: torch.device,
    ) -> None:
        rows = [[row_of[row_id] for row_id in group.row_ids] for group in groups]
        most = max(len(lanes) for lanes in rows)
        # A lane that a group lacks is its conditional lane with weight 0, which adds nothing.
        padded = [lanes + lanes[:1] * (most - len(lanes)) for lanes in rows]
        weights = [group.weights + [0.0] * (most - len(group.weights)) for group in groups]
        lane_of = {lane: lanes[0] for lanes in rows for lane in lanes[1:]}
        sampling = [row for row in range(num_rows) if row not in lane_of]
        index = {row: i for i, row in enumerate(sampling)}

        def tensor(values: list[Any], dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)

        self._lanes = tensor(padded).T.contiguous()
        self._weights = tensor(weights, torch.float32).T.contiguous()
        self.sampling_rows_host = sampling
        self.sampling_rows = tensor(sampling)
        self.source = tensor([index[lane_of.get(row, row)] for row in range(num_rows)])
        self.guided_host = [index[lanes[0]] for lanes in rows]
        self.guided = tensor(self.guided_host)
        self.lane_rows_host = list(lane_of)
        self.lane_rows = tensor(self.lane_rows_host)

    def merge(self, values: torch.Tensor) -> torch.Tensor:
        """[num_groups, width] weighted sums over the lanes of [num_rows, width] values.

        Computed in float32, lane by lane in order, so that a group's sum depends on nothing else.
        """
        merged = values[self._lanes[0]].float() * self._weights[0][:, None]
        for lanes, weights in zip(self._lanes[1:], self._weights[1:], strict=True):
            merged += values[lanes].float() * weights[:, None]
        return merged


class GuidedRunner:
    """Mixed in before a V1 runner class; gives it sequence groups.

    For a single-stream model the lanes' logits are merged and upstream's sampler samples; what it
    samples for guidance lanes is replaced by their conditional lane's tokens.
    """

    _guidance: list[GuidedRows] | None = None
    _guided_key: tuple[Any, ...] = ()
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
        key = (tuple(tuple(group.row_ids) for group in self._guidance), tuple(batch.req_ids))
        if key != self._guided_key or self._guided_batch is None:
            # Groups and their rows stay the same from step to step in steady decoding.
            self._guided_key = key
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
        logits[batch.sampling_rows[batch.guided]] = merged
        output = super()._sample(logits, spec_decode_metadata)  # type: ignore[misc]
        own = output.sampled_token_ids[batch.sampling_rows]
        output.sampled_token_ids = own[batch.source]
        return output

    def sample_tokens(self, grammar_output: Any) -> Any:
        """Upstream's, which rewinds the generators of rows still in prefill, a thing that
        generators on the CPU cannot do: there such rows do without."""
        this: Any = self
        generators = this.input_batch.generators
        if this.device.type != "cpu" or not generators:
            return super().sample_tokens(grammar_output)  # type: ignore[misc]
        unfinished = this.discard_request_mask.np
        held = {row: generators.pop(row) for row in list(generators) if unfinished[row]}
        try:
            return super().sample_tokens(grammar_output)  # type: ignore[misc]
        finally:
            generators.update(held)
