# SPDX-License-Identifier: Apache-2.0
"""The input embedding of a multi-stream model; see ``csrc/embed/``.

:func:`embed_streams` is the compiled operator, :func:`embed_streams_reference` its definition in
plain PyTorch.
"""

from __future__ import annotations

import torch


def embed_streams(
    primary: torch.Tensor,
    primary_ids: torch.Tensor | None,
    primary_skipped: torch.Tensor | None,
    auxiliary_embedding: torch.Tensor,
    auxiliary_row: torch.Tensor,
    auxiliary_ids: torch.Tensor,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """The input embedding of a multi-stream model: per position the sum over its streams.

    The rows are added in float32, stream by stream, and the sum is rounded once. A position reads K
    rows and writes one, (K + 1) * hidden_size elements; nothing is gathered into an intermediate
    tensor. The caller has loaded the extension: the function runs in compiled models.

    Args:
        primary: stream 0's embedding table [vocabulary_size, hidden_size], or with `primary_ids`
            None its embeddings [num_tokens, hidden_size] as they are.
        primary_ids: [num_tokens] int32 or int64 ids of stream 0.
        primary_skipped: [vocabulary_size] bool, ids of stream 0 that add nothing; None if all add.
        auxiliary_embedding: [num_rows, hidden_size] embeddings of the other streams. Row 0 is not
            read: it stands for ids that add nothing.
        auxiliary_row: [vocabulary_size] int32, the row of each id of streams 1 and up.
        auxiliary_ids: [num_tokens, num_streams - 1] int32.
        out: [num_tokens, hidden_size] in the tables' type, written; None for a new tensor.

    Returns:
        `out`. Ids outside the vocabulary add nothing.

    Raises:
        RuntimeError: a tensor has a wrong shape, type or device; the message names it.
    """
    if out is None:
        tokens = len(primary) if primary_ids is None else len(primary_ids)
        out = primary.new_empty((tokens, primary.shape[1]))
    torch.ops.unison.embed_streams.default(
        primary,
        primary_ids,
        primary_skipped,
        auxiliary_embedding,
        auxiliary_row,
        auxiliary_ids,
        out,
    )
    return out


def embed_streams_reference(
    primary: torch.Tensor,
    primary_ids: torch.Tensor | None,
    primary_skipped: torch.Tensor | None,
    auxiliary_embedding: torch.Tensor,
    auxiliary_row: torch.Tensor,
    auxiliary_ids: torch.Tensor,
) -> torch.Tensor:
    """The definition of :func:`embed_streams`, bit for bit."""
    # The empty sum is 0. Otherwise the first row that adds anything is taken as it is, which
    # differs from adding it to 0 only in the sign of zero.
    if primary_ids is None:
        total = primary.float()
    else:
        exists = (primary_ids >= 0) & (primary_ids < len(primary))
        rows = torch.where(exists, primary_ids, 0).long()
        if primary_skipped is not None:
            exists &= ~primary_skipped[rows]
        total = torch.where(exists[:, None], primary[rows].float(), 0.0)
    for stream in range(auxiliary_ids.shape[1]):
        ids = auxiliary_ids[:, stream].long()
        exists = (ids >= 0) & (ids < len(auxiliary_row))
        rows = torch.where(exists, auxiliary_row[torch.where(exists, ids, 0)].long(), 0)
        term = auxiliary_embedding[rows].float()
        total = torch.where((rows > 0)[:, None], total + term, total)
    return total.to(primary.dtype)
