# SPDX-License-Identifier: Apache-2.0
"""The inputs of a step in which every row computes one token, moved on from the step before."""

from __future__ import annotations

import torch


def move_inputs(
    tokens: torch.Tensor,
    block_table: torch.Tensor,
    block_size: int,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    seq_lens: torch.Tensor,
    sampled_position: torch.Tensor,
    slots: torch.Tensor,
    auxiliary_ids: torch.Tensor,
) -> None:
    """Move a step's inputs on to the tokens that were sampled last; one compiled operator.

    Args:
        tokens: [num_rows, num_streams] int32 what the last step sampled.
        block_table: [>= num_rows, blocks] int32 numbers of each row's KV cache blocks.
        block_size: tokens of a block.
        input_ids: [num_rows] int32, written: the tokens of stream 0.
        positions: [num_rows] int64, increased by 1.
        seq_lens: [num_rows] int32, increased by 1.
        sampled_position: [num_rows] int64, increased by 1.
        slots: [num_rows] int64, written: where in the KV cache each row's position lies.
        auxiliary_ids: [>= num_rows, num_streams - 1] int32, written: the tokens of the others.

    Raises:
        RuntimeError: a tensor has a wrong shape or type, or a position no block; the message names
            it.
    """
    torch.ops.unison.move_inputs.default(
        tokens,
        block_table,
        block_size,
        input_ids,
        positions,
        seq_lens,
        sampled_position,
        slots,
        auxiliary_ids,
    )


def move_inputs_reference(
    tokens: torch.Tensor,
    block_table: torch.Tensor,
    block_size: int,
    input_ids: torch.Tensor,
    positions: torch.Tensor,
    seq_lens: torch.Tensor,
    sampled_position: torch.Tensor,
    slots: torch.Tensor,
    auxiliary_ids: torch.Tensor,
) -> None:
    """The definition of :func:`move_inputs`."""
    rows = torch.arange(len(tokens))
    for moved in (positions, seq_lens, sampled_position):
        moved += 1
    input_ids[:] = tokens[:, 0]
    auxiliary_ids[: len(tokens)] = tokens[:, 1:]
    blocks = block_table[rows, positions // block_size].long()
    slots[:] = blocks * block_size + positions % block_size
