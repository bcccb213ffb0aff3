# SPDX-License-Identifier: Apache-2.0
"""What a step does with the streams of its batch, besides sampling; see ``csrc/phase_step/``.

Three operators read and write the tensors that hold every request's streams, by slot:

- ``gather_streams``, before the backbone: the auxiliary ids of the step's tokens, by
  :func:`gather_ids`;
- ``constrain_streams``, before sampling: the token that each stream must emit, if any, and the
  mask of the candidates that it may choose among;
- ``commit_streams``, after sampling: writes the tokens into the history of every lane and moves
  each request through its phases.

The last two act on the worker's state with the rule of ``vllm/unison/model/phases.py``, so
``vllm/unison/sampler/phase_machine.py`` calls them and defines them in PyTorch.
"""

from __future__ import annotations

import torch


def gather_ids(
    history: torch.Tensor,
    slots: torch.Tensor,
    rows: torch.Tensor,
    positions: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Write the auxiliary ids of a step's tokens.

    The caller has loaded the extension.

    Args:
        history: [num_slots, num_positions, num_streams] int32.
        slots: [num_rows] int64 slot of each row of the batch.
        rows: [num_tokens] int32 or int64 batch row of each token.
        positions: [num_tokens] int64 position of each token.
        out: [>= num_tokens, num_streams - 1] int32, written.

    Raises:
        RuntimeError: a tensor has a wrong shape or type; the message names it.
    """
    torch.ops.unison.gather_streams.default(history, slots, rows, positions, out)


def gather_ids_reference(
    history: torch.Tensor,
    slots: torch.Tensor,
    rows: torch.Tensor,
    positions: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """The definition of :func:`gather_ids`."""
    out[: len(rows)] = history[slots[rows.long()], positions, 1:]
