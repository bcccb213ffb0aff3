# SPDX-License-Identifier: Apache-2.0
"""Sums of rows: lanes of sequence groups, and the embeddings of a position's streams.

Both are compiled operators that read each row once, add in float32 in the order given, and round
once. The functions named ``_reference`` define them in plain PyTorch.
"""

from __future__ import annotations

import torch

from vllm.multistream.extension import load_extension


def merge_lanes(
    values: torch.Tensor,
    sources: torch.Tensor,
    weights: torch.Tensor,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Weighted sums over the lanes of groups.

    Args:
        values: [num_rows, width] float32, bfloat16 or float16, contiguous in its last dimension.
        sources: [num_groups, num_lanes] int64 rows of `values`; an index that is no row, such as
            -1, is no lane. A group without lanes gives 0.
        weights: [num_groups, num_lanes] float32.
        dtype: of the result: float32, or that of `values` (the default).

    Returns:
        [num_groups, width]; a group's sum depends on its own lanes only.

    Raises:
        RuntimeError: a tensor has a wrong shape, type or device; the message names it.
    """
    load_extension()
    merged = values.new_empty((sources.shape[0], values.shape[1]), dtype=dtype)
    torch.ops.unison.merge_lanes.default(values, sources, weights, merged)
    return merged


def merge_lanes_reference(
    values: torch.Tensor,
    sources: torch.Tensor,
    weights: torch.Tensor,
    dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """The definition of :func:`merge_lanes`, bit for bit."""
    exists = (sources >= 0) & (sources < len(values))
    merged = torch.zeros((len(sources), values.shape[1]), device=values.device)
    empty = torch.ones(len(sources), dtype=torch.bool, device=values.device)
    for lane in range(sources.shape[1] if len(values) else 0):
        rows = torch.where(exists[:, lane], sources[:, lane], 0)
        term = values[rows].float() * weights[:, lane, None]
        total = torch.where(empty[:, None], term, merged + term)
        merged = torch.where(exists[:, lane, None], total, merged)
        empty &= ~exists[:, lane]
    return merged.to(values.dtype if dtype is None else dtype)


def multistream_embed(
    primary: torch.Tensor,
    primary_ids: torch.Tensor | None,
    primary_skipped: torch.Tensor | None,
    auxiliary_embedding: torch.Tensor,
    auxiliary_row: torch.Tensor,
    auxiliary_ids: torch.Tensor,
) -> torch.Tensor:
    """The input embedding of a multi-stream model: per position the sum over its streams.

    A position reads K rows and writes one, (K + 1) * hidden_size elements; nothing is gathered into
    an intermediate tensor.

    Args:
        primary: stream 0's embedding table [vocabulary_size, hidden_size], or with `primary_ids`
            None its embeddings [num_tokens, hidden_size] as they are.
        primary_ids: [num_tokens] int32 or int64 ids of stream 0.
        primary_skipped: [vocabulary_size] bool, ids of stream 0 that add nothing; None if all do.
        auxiliary_embedding: [num_rows, hidden_size] embeddings of the other streams. Row 0 is not
            read: it stands for ids that add nothing.
        auxiliary_row: [vocabulary_size] int32, the row of each id of streams 1...
        auxiliary_ids: [num_tokens, num_streams - 1] int32.

    Returns:
        [num_tokens, hidden_size] in the tables' type. Ids outside the vocabulary add nothing.

    Raises:
        RuntimeError: a tensor has a wrong shape, type or device; the message names it.
    """
    return torch.ops.unison.multistream_embed.default(
        primary, primary_ids, primary_skipped, auxiliary_embedding, auxiliary_row, auxiliary_ids
    )


def multistream_embed_reference(
    primary: torch.Tensor,
    primary_ids: torch.Tensor | None,
    primary_skipped: torch.Tensor | None,
    auxiliary_embedding: torch.Tensor,
    auxiliary_row: torch.Tensor,
    auxiliary_ids: torch.Tensor,
) -> torch.Tensor:
    """The definition of :func:`multistream_embed`, bit for bit."""
    # A sum of nothing is 0; otherwise the first row that adds anything is taken as it is, which
    # adding it to 0 would do too, but for the sign of zero.
    if primary_ids is None:
        total = primary.float()
    else:
        known = (primary_ids >= 0) & (primary_ids < len(primary))
        rows = torch.where(known, primary_ids, 0).long()
        if primary_skipped is not None:
            known &= ~primary_skipped[rows]
        total = torch.where(known[:, None], primary[rows].float(), 0.0)
    for stream in range(auxiliary_ids.shape[1]):
        ids = auxiliary_ids[:, stream].long()
        known = (ids >= 0) & (ids < len(auxiliary_row))
        rows = torch.where(known, auxiliary_row[torch.where(known, ids, 0)].long(), 0)
        term = auxiliary_embedding[rows].float()
        total = torch.where((rows > 0)[:, None], total + term, total)
    return total.to(primary.dtype)
