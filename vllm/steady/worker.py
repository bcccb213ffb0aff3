# SPDX-License-Identifier: Apache-2.0
"""Prepares the worker's steady steps: the last step's inputs, moved on by one token.

On a device that the host reads directly (the CPU), a step's inputs are views of buffers that live
as long as the runner. A general step makes these views and derives the attention's metadata from
them; a steady one writes the buffers and derives what depends on lengths again. What the runner
keeps of each request is brought up to date when steadiness ends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from vllm.forward_context import ForwardContext, override_forward_context
from vllm.steady.inputs import move_inputs
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadata

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput

MOST_STEPS = 256
"""Steps after which what the runner keeps of each request is brought up to date at the latest."""


class SteadyStep:
    """The newest step of a runner, as far as the next one can go on from it.

    Args:
        runner: the V1 model runner.
    """

    def __init__(self, runner: Any) -> None:
        self._runner = runner
        self._context: ForwardContext | None = None
        self._tokens: torch.Tensor | None = None
        # Steps whose tokens stand in the streams' history only.
        self._num_unsettled = 0
        self.sampled_position: torch.Tensor | None = None
        """[num_rows] int64 position of what a steady step samples, moved on in place."""

    @property
    def is_ready(self) -> bool:
        """Whether a steady step can follow the newest one."""
        return self._context is not None and self._tokens is not None

    def capture(self, context: ForwardContext, inputs: dict[str, Any]) -> None:
        """Keep the inputs of a general step in which every row computes one token.

        Args:
            context: of the step's forward.
            inputs: keyword arguments of the model's forward.
        """
        runner = self._runner
        self.forget()
        num_rows = runner.input_batch.num_reqs
        positions = inputs.get("positions")
        metadata = context.attn_metadata
        if (
            inputs.get("inputs_embeds") is not None
            or inputs.get("intermediate_tensors") is not None
            or positions is None
            or len(positions) != num_rows
            or not isinstance(metadata, dict)
            or len(runner.kv_cache_config.kv_cache_groups) != 1
            or len(runner.attn_groups[0]) != 1
            or runner.discard_request_mask.np[:num_rows].any()
        ):
            return
        parts = {id(part): part for part in metadata.values()}
        if len(parts) != 1:
            return
        (part,) = parts.values()
        if not isinstance(part, CPUAttentionMetadata):
            return
        self._context, self._inputs, self._metadata = context, inputs, part
        self._num_rows = num_rows
        self._builder = runner.attn_groups[0][0].get_metadata_builder(0)
        self._common = CommonAttentionMetadata(
            query_start_loc=part.query_start_loc,
            query_start_loc_cpu=part.query_start_loc,
            seq_lens=part.seq_lens,
            num_reqs=num_rows,
            num_actual_tokens=num_rows,
            max_query_len=1,
            max_seq_len=part.max_seq_len,
            block_table_tensor=part.block_table,
            slot_mapping=part.slot_mapping,
            causal=part.causal,
        )
        # What is sampled stands one position further on than what is computed.
        self.sampled_position = runner.seq_lens[:num_rows].long()
        table = runner.input_batch.block_table[0]
        self._moved = (
            table.block_table.cpu,
            table.block_size,
            inputs["input_ids"],
            positions,
            runner.seq_lens[:num_rows],
            self.sampled_position,
            part.slot_mapping[:num_rows],
            runner.model.auxiliary_ids,
        )
        self.discard = torch.zeros(num_rows, dtype=torch.bool)
        self.request_ids: list[str] = list(runner.input_batch.req_ids)
        self.row_of: dict[str, int] = dict(runner.input_batch.req_id_to_index)

    def follow(self, tokens: torch.Tensor) -> None:
        """Take note of what the captured general step has sampled.

        Args:
            tokens: [num_rows, num_streams] int32.
        """
        self._tokens = tokens

    def keep(self, tokens: torch.Tensor) -> None:
        """Take note of what a steady step has sampled.

        Args:
            tokens: [num_rows, num_streams] int32.
        """
        self._tokens = tokens
        self._num_unsettled += 1
        if self._num_unsettled == MOST_STEPS:
            self._settle()

    def forward(self, output: SchedulerOutput) -> torch.Tensor:
        """Move the inputs on by one token and run the model.

        Args:
            output: the scheduler's, of a steady step.

        Returns:
            [num_rows, hidden_size] hidden states.
        """
        assert self._context is not None and self._tokens is not None
        runner = self._runner
        if output.total_num_scheduled_tokens != self._num_rows:
            raise RuntimeError(
                f"a steady step of {output.total_num_scheduled_tokens} rows follows one of "
                f"{self._num_rows}"
            )
        table = runner.input_batch.block_table
        cached = output.scheduled_cached_reqs
        if cached.new_block_ids.count(None) < self._num_rows:
            for row_id, new in zip(cached.req_ids, cached.new_block_ids, strict=True):
                if new is not None:
                    for held, ids in zip(runner.requests[row_id].block_ids, new, strict=True):
                        held.extend(ids)
                    table.append_row(new, self.row_of[row_id])
            table.commit_block_table(self._num_rows)
        move_inputs(self._tokens, *self._moved)
        self._move_attention()
        with override_forward_context(self._context):
            hidden_states: torch.Tensor = runner.model(**self._inputs)
        return hidden_states

    def _move_attention(self) -> None:
        """Derive what the attention's metadata holds of the rows' lengths."""
        self._common.max_seq_len += 1
        moved = self._builder.build(0, self._common)
        self._metadata.max_seq_len = moved.max_seq_len
        self._metadata.scheduler_metadata = moved.scheduler_metadata

    def forget(self) -> None:
        """Before a general step: bring the runner's requests up to date."""
        self._settle()
        self._context = self._tokens = None

    def _settle(self) -> None:
        """Write what steady steps have sampled into the runner's batch and requests."""
        if not self._num_unsettled:
            return
        runner, num_rows = self._runner, self._num_rows
        batch = runner.input_batch
        count, self._num_unsettled = self._num_unsettled, 0
        history = runner.stream_history(self._num_rows)
        batch.num_computed_tokens_cpu[:num_rows] += count
        for row, emitted in enumerate(history):
            start = batch.num_tokens_no_spec[row]
            token_ids = emitted[start : start + count]
            batch.token_ids_cpu[row, start : start + count] = token_ids
            batch.is_token_ids[row, start : start + count] = True
            request = runner.requests[self.request_ids[row]]
            request.output_token_ids.extend(token_ids.tolist())
            request.num_computed_tokens += count
        batch.num_tokens_no_spec[:num_rows] += count
